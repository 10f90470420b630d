"""The address and key of a server; the key leaves this file only in the request's header."""

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kdcli.config.sections import ServerConfig
from kdcli.errors import UsageError
from kdcli.text import one_line

_HIDDEN = "***"
_FIX = "give one such as http://localhost:8000/v1"


@dataclass(frozen=True)
class Address:
    """A server's base address.

    Args:
        url: scheme, host and path, without a slash at the end.
        key: what is sent as bearer token; empty for none. It is not shown when the object is printed.
    """

    url: str
    key: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every request says about us."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine, so that no proxy must stand between.

        >>> Address("http://127.0.0.1:8000/v1").is_loopback, Address("https://example.org/v1").is_loopback
        (True, False)
        """
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def hide(self, text: str, width: int = 200) -> str:
        """Return a server's words on one line, without the key should it be among them.

        >>> Address("http://a/v1", "secret").hide("bad key: secret")
        'bad key: ***'
        """
        return one_line(text.replace(self.key, _HIDDEN) if self.key else text, width)


def is_url(teacher: str) -> bool:
    """Whether a teacher is a server's address rather than a folder or hub id.

    >>> is_url("http://localhost:8000/v1"), is_url("org/model")
    (True, False)
    """
    return teacher.startswith(("http://", "https://"))


def served_identity(model: str, url: str) -> str:
    """Return what identifies a model behind a server, in records and in keys of caches.

    >>> served_identity("m", "http://localhost:8000/v1")
    'm at http://localhost:8000/v1'
    """
    return f"{model}{_at(url)}"


def served_model(identity: str, url: str) -> str | None:
    """Return the name in the identity of a model behind a server; None if it is of another server, or of none.

    >>> served_model("org/m at home at http://a/v1", "http://a/v1"), served_model("sha256", "http://a/v1")
    ('org/m at home', None)
    """
    name = identity.removesuffix(_at(url))
    return name if name not in ("", identity) else None


def _at(url: str) -> str:
    return f" at {url}"


def address_of(config: ServerConfig) -> Address:
    """Return the server's address and the key that its environment variable holds.

    Args:
        config: the address as typed, and the name of the variable.

    Raises:
        UsageError: SERVE-01, no address or one that no server can have, or a key written into it.

    >>> address_of(ServerConfig(url="localhost:8000")).url
    'http://localhost:8000/v1'
    """
    typed = (config.url or "").strip()
    if not typed:
        raise UsageError("SERVE-01", "no address", where="--server-url", fix=_FIX)
    try:
        parts = urlsplit(typed if "://" in typed else f"http://{typed}")
        port = parts.port
    except ValueError as error:
        raise UsageError("SERVE-01", one_line(str(error), 80), where="--server-url", fix=_FIX) from error
    if parts.username or parts.password or parts.query or parts.fragment:
        what = "the address holds a user, a query or a fragment, which would be written into results"
        fix = f"give scheme, host and path; put a key into the variable {one_line(config.key_variable, 40)}"
        raise UsageError("SERVE-01", what, where="--server-url", fix=fix)
    if parts.scheme not in ("http", "https") or not parts.hostname or any(not sign.isprintable() for sign in typed):
        raise UsageError("SERVE-01", f'no address of a server: "{one_line(typed, 80)}"', where="--server-url", fix=_FIX)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    key = os.environ.get(config.key_variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UsageError(
            "SERVE-01", "holds no key", where=f"variable {one_line(config.key_variable, 40)}", fix="set it"
        )
    return Address(f"{parts.scheme}://{place}{parts.path.rstrip('/') or '/v1'}", key)
