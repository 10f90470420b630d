"""One line of a diagnosis."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from kdcli.errors import KDError

State: TypeAlias = Literal["ok", "warn", "fail"]
T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what.
        state: whether it will do.
        what: what was found.
        fix: what to do about it; empty where it is well.
        exit_code: what ``kd`` leaves with where it fails.
    """

    name: str
    state: State
    what: str
    fix: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at.

    Args:
        checks: in the order of looking.
    """

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """That of the first check that failed; 0 where none did."""
        return next((check.exit_code for check in self.checks if check.state == "fail"), 0)


class Examination:
    """Gathers checks; an error becomes a line instead of an end."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def add(self, name: str, state: State, what: str, fix: str = "", exit_code: int = 4) -> None:
        """Add a line; a failure is the machine's unless an exit code says otherwise."""
        self.checks.append(Check(name, state, what, fix, exit_code if state == "fail" else 0))

    def attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """Return what the work gives; a user's error becomes a failed check and None."""
        try:
            return work()
        except KDError as error:
            where = f"{error.where}: " if error.where else ""
            self.checks.append(Check(name, "fail", f"[{error.code}] {where}{error.what}", error.fix, error.exit_code))
            return None
