"""Entry point of ``kd`` and ``python -m kdcli``; small, so that a signal while the rest is imported ends in order."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process and exit with its exit code."""
    signal.signal(signal.SIGINT, _leave)
    for number in range(3):  # a file opened later must not become a standard stream that was closed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    from kdcli.cli.app import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun."""
    sys.stderr.write("kd: stopped at once; nothing was begun\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
