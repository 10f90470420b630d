"""What it looks like when another process of the run is gone."""

import torch.distributed as dist

from kdcli.errors import MachineError

LOST = "PROC-01"
_SIGNS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Timed out waiting")


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process no longer answers.

    >>> is_lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4567"))
    True
    >>> is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def lost_peer(step: int, saved: int | None, command: str) -> MachineError:
    """Return the error of a run that lost a process.

    Args:
        step: optimizer steps done.
        saved: those of the checkpoint there is; None without one.
        command: what to type to go on.
    """
    found = f"saved at step {saved}" if saved is not None else "nothing is saved yet"
    what = f"another process of the run ended or does not answer, at step {step + 1}; {found}"
    return MachineError(LOST, what, fix=f"go on with: {command}")
