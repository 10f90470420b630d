import subprocess
import sys

import pytest

from kdcli.errors import BusyError
from kdcli.storage import lock

ASK = "import sys; from pathlib import Path; from kdcli.storage import lock; sys.exit(lock.is_held(Path(sys.argv[1])))"
TAKE = "import sys; from pathlib import Path; from kdcli.storage import lock\nwith lock.hold(Path(sys.argv[1])): pass"


def other(script, folder):
    return subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)


def test_looking_never_drops_the_lock(tmp_path):
    assert not lock.is_held(tmp_path)
    with lock.hold(tmp_path):
        assert lock.is_held(tmp_path)
        assert other(ASK, tmp_path).returncode == 1
        refused = other(TAKE, tmp_path)
        assert BusyError.__name__ in refused.stderr
    assert not lock.is_held(tmp_path)
    assert other(TAKE, tmp_path).returncode == 0


def test_a_folder_that_is_not_there_is_free(tmp_path):
    assert not lock.is_held(tmp_path / "nothing")
    with pytest.raises(Exception, match="cannot be written"), lock.hold(tmp_path / "nothing"):
        pass
