import importlib.metadata
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from kdcli.errors import InputError, UsageError
from kdcli.registry import catalog
from kdcli.registry.registry import LOSSES

GUEST = '''
from kdcli.losses.divergences.kl import ForwardKL


class Mine(ForwardKL):
    """A guest."""


class Other(int):
    """No loss."""
'''


@pytest.fixture
def guest(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GUEST)
    return path


@pytest.mark.parametrize("name", catalog.LOSSES)
def test_every_built_in_resolves_and_knows_its_name(name):
    found = LOSSES.resolve(name)
    assert found.name == name
    assert LOSSES.name_of(found) == name


def test_every_alias_leads_to_a_registered_name():
    assert set(catalog.LOSS_ALIASES.values()) <= set(catalog.LOSSES)
    assert not set(catalog.LOSS_ALIASES) & set(catalog.LOSSES)


@pytest.mark.parametrize("typed, name", [("forward_kl", "fkl"), ("Reverse-KL", "rkl"), ("AKL", "akl"), ("js", "jsd")])
def test_spellings(typed, name):
    assert LOSSES.canonical(typed) == name


def test_unknown_name_offers_the_nearest():
    with pytest.raises(UsageError, match='unknown loss "alk"') as caught:
        LOSSES.canonical("alk")
    assert "did you mean akl" in caught.value.fix
    assert "kd losses list" in caught.value.fix


@pytest.mark.parametrize("typed", ["ce:a", "akl:mu", "forward_kl:x"])
def test_an_option_without_a_value_is_not_taken_for_a_guest(typed):
    with pytest.raises(UsageError, match="is not key=value"):
        LOSSES.canonical(typed)


def test_a_guest_by_path(guest):
    found = LOSSES.resolve(f"{guest}:Mine")
    assert found is LOSSES.resolve(f"{guest}:Mine")
    assert LOSSES.name_of(found) == f"{guest}:Mine"
    assert pickle.loads(pickle.dumps(found())) == found()


def test_a_guest_by_module(guest, monkeypatch):
    monkeypatch.syspath_prepend(str(guest.parent))
    found = LOSSES.resolve("mine:Mine")
    assert LOSSES.name_of(found) == "mine:Mine"


def test_a_guest_that_is_no_loss_is_refused_with_an_offer(guest):
    with pytest.raises(InputError, match="Other is not a loss") as caught:
        LOSSES.resolve(f"{guest}:Other")
    assert caught.value.fix == "it offers Mine"
    with pytest.raises(InputError, match='has no loss "Missing"'):
        LOSSES.resolve(f"{guest}:Missing")


def test_a_path_without_a_class_says_what_to_write(guest):
    with pytest.raises(UsageError) as caught:
        LOSSES.resolve(str(guest))
    assert f"{guest}:Class" in caught.value.fix


@pytest.mark.parametrize(
    "source, code, says",
    [
        ("import no_such_module", "PLUG-02", "No module named 'no_such_module'"),
        ("1/0", "PLUG-02", "ZeroDivisionError"),
        ("def", "PLUG-02", "SyntaxError"),
        ("import sys; sys.exit(3)", "PLUG-08", "sys.exit"),
    ],
)
def test_a_guest_that_cannot_be_imported(tmp_path, source, code, says):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(InputError, match=says) as caught:
        LOSSES.resolve(f"{path}:Mine")
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_what_a_guest_prints_while_imported_does_not_reach_stdout(tmp_path, capsys):
    path = tmp_path / "loud.py"
    path.write_text("print('hello')\n" + GUEST)
    LOSSES.resolve(f"{path}:Mine")
    assert capsys.readouterr().out == ""


def test_a_file_in_this_folder_is_offered_as_a_path(tmp_path, monkeypatch):
    (tmp_path / "lonely.py").write_text(GUEST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with pytest.raises(InputError) as caught:
        LOSSES.resolve("lonely:Mine")
    assert caught.value.fix == "for the file in this folder write ./lonely.py:Class"


def test_missing_file_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such file") as caught:
        LOSSES.resolve("./nowhere.py:Mine")
    assert str(tmp_path) in caught.value.what


def _points(monkeypatch, *pairs):
    points = [importlib.metadata.EntryPoint(name, value, "kd.losses") for name, value in pairs]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)


def test_an_entry_point_is_a_name_like_any_other(monkeypatch, guest):
    monkeypatch.syspath_prepend(str(guest.parent))
    _points(monkeypatch, ("mine", "mine:Mine"))
    registry = replace(LOSSES)
    assert registry.names()[-1] == "mine"
    assert registry.name_of(registry.resolve("mine")) == "mine"


@pytest.mark.parametrize("pairs", [(("akl", "mine:Mine"),), (("new", "mine:Mine"), ("new", "yours:Mine"))])
def test_a_name_taken_twice_is_refused_naming_both(monkeypatch, pairs):
    _points(monkeypatch, *pairs)
    with pytest.raises(InputError, match=r"is offered by .* and by ") as caught:
        replace(LOSSES).names()
    assert caught.value.code == "PLUG-03"


def test_the_registry_imports_no_torch():
    code = "import sys; from kdcli.registry.registry import LOSSES; LOSSES.canonical('kl'); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
