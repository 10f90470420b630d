"""What a server can do wrong, each as one line with its exit code."""

from pydantic import ValidationError

from kdcli.errors import InputError, KDError, MachineError
from kdcli.runs.serving.address import Address

KEPT = "what was answered so far is kept with -o; run the same command again to go on"


class TryAgain(Exception):
    """A failure that may pass.

    Args:
        error: what to say if it does not.
        seconds: how long the server asks us to wait; None if it does not say.
    """

    def __init__(self, error: KDError, seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.seconds = seconds


_UNREAD = (400, 422)
"""Statuses by which a server says that the request itself is wrong."""


class UnreadError(InputError):
    """A server that knows address, key and model does not take a request as it stands."""


def unreachable(address: Address, reason: str) -> MachineError:
    """Say that no connection could be made or kept (exit code 4)."""
    what = f"cannot be reached: {address.hide(reason) or 'the connection broke'}"
    return MachineError("SERVE-02", what, where=address.url, fix=f"start it or check the address; {KEPT}")


def stalled(address: Address, seconds: float) -> MachineError:
    """Say that a reply did not come in time (exit code 4)."""
    what = f"no reply within {seconds:g} s"
    fix = f"raise server.timeout, or lower server.concurrency; {KEPT}"
    return MachineError("SERVE-03", what, where=address.url, fix=fix)


def failing(address: Address, status: int, raw: bytes) -> MachineError:
    """Say that the server failed or is too busy (exit code 4)."""
    what = f"answers with status {status}{_said(address, raw)}"
    fix = f"lower server.concurrency, or look at the server's log; {KEPT}"
    return MachineError("SERVE-04", what, where=address.url, fix=fix)


def refusing(address: Address, status: int, raw: bytes) -> InputError:
    """Say that the server does not take the request (exit code 3)."""
    fixes = {
        401: "put the key into the variable that server.key_variable names (default OPENAI_API_KEY)",
        403: "put a key that may use this model into the variable that server.key_variable names",
        404: "check the address (it often ends in /v1) and --set server.model=NAME",
    }
    what = f"refuses the request with status {status}{_said(address, raw)}"
    kind = UnreadError if status in _UNREAD else InputError
    return kind("SERVE-05", what, where=address.url, fix=fixes.get(status, "check --set server.model=NAME and lengths"))


def nonsense(address: Address, error: ValueError, raw: bytes) -> InputError:
    """Say that a reply is not what the protocol promises (exit code 3)."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}" if place else "not JSON"
    else:
        reason = str(error)
    what = f"the reply makes no sense ({address.hide(reason, 100)}){_said(address, raw)}"
    return InputError("SERVE-06", what, where=address.url, fix=f"check that it speaks the OpenAI protocol; {KEPT}")


def too_large(address: Address, limit: int) -> InputError:
    """Say that a reply is larger than any answer can be (exit code 3)."""
    what = f"the reply is larger than {limit // 2**20} MiB"
    return InputError("SERVE-07", what, where=address.url, fix="check that it speaks the OpenAI protocol")


def _said(address: Address, raw: bytes) -> str:
    text = address.hide(raw[:1000].decode("utf-8", "replace").strip(), 120)
    return f": {text}" if text else ""
