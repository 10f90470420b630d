"""One store of JSON lines: found by key, torn and damaged lines absent, several writers, flushed when it is time."""

import json
import os

import pytest

from kdcli.errors import IntegrityError, MachineError
from kdcli.storage.jsonl import JsonlStore, RotatingStore, line_of, read_lines

ENTRIES = [{"key": f"k{number}", "text": "é\n" * number, "n": [number, 0.1]} for number in range(3)]


def filled(path, **options):
    store = JsonlStore(path, **options)
    for entry in ENTRIES:
        store.add(entry)
    return store


def test_an_entry_is_found_again_by_this_process_and_the_next(tmp_path):
    here, path = filled(tmp_path / "lines"), tmp_path / "lines"
    for store in (here, JsonlStore(path)):
        assert len(store) == 3
        assert store.keys() == {"k0", "k1", "k2"}
        assert [store.find(entry["key"]) for entry in ENTRIES] == ENTRIES
        assert store.find("k3") is None
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines == [*map(line_of, ENTRIES)]
    assert [start for start, _ in read_lines(path)] == [sum(map(len, lines[:number])) for number in range(3)]


def test_of_two_lines_of_one_key_the_later_counts(tmp_path):
    path = tmp_path / "lines"
    here = filled(path)
    here.add({"key": "k1", "text": "later"})
    for store in (here, JsonlStore(path)):
        assert len(store) == 3
        assert store.find("k1") == {"key": "k1", "text": "later"}
        assert store.find("k2") == ENTRIES[2]


def test_a_file_cut_anywhere_keeps_its_whole_lines_and_takes_the_next(tmp_path):
    path = tmp_path / "lines"
    filled(path)
    body = path.read_bytes()
    ends = [sum(len(line_of(entry)) for entry in ENTRIES[: number + 1]) for number in range(3)]
    new = {"key": "new"}
    for cut in range(len(body) + 1):
        path.write_bytes(body[:cut])
        whole = ENTRIES[: sum(end <= cut for end in ends)]
        JsonlStore(path).add(new)
        assert [entry for _, entry in read_lines(path)] == [*whole, new]
        assert path.read_bytes() == b"".join(map(line_of, [*whole, new]))


def test_no_flipped_bit_is_taken_for_an_entry(tmp_path):
    path = tmp_path / "lines"
    filled(path)
    body = path.read_bytes()
    for at in range(len(body)):
        for bit in range(0, 8, 3):
            path.write_bytes(body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :])
            store = JsonlStore(path)
            found = {key: store.find(key) for key in sorted(store.keys(), key=str)}
            assert found.items() <= {entry["key"]: entry for entry in ENTRIES}.items()
            assert len(found) >= 1


def test_damage_that_comes_after_opening_counts_as_absent_too(tmp_path):
    store, path = filled(tmp_path / "lines"), tmp_path / "lines"
    path.write_bytes(path.read_bytes().replace(b"k1", b"k9"))
    assert [store.find(entry["key"]) for entry in ENTRIES] == [ENTRIES[0], None, ENTRIES[2]]
    path.write_bytes(line_of(ENTRIES[2]) * 3)
    assert store.find("k0") is None
    path.unlink()
    assert store.find("k0") is None


def test_lines_that_are_no_entries_are_passed_over(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(
        b'\n[]\n3\n\xff\n{"check": "00"}\n' + b"[" * 99_999 + b"\n" + line_of({"no": 1}) + line_of({"key": []})
    )
    assert len(JsonlStore(path)) == 0
    path.write_bytes(json.dumps(ENTRIES[0]).encode() + b"\n" + line_of(ENTRIES[1]))
    assert JsonlStore(path).keys() == {"k1"}
    assert JsonlStore(path, unchecked=True).find("k0") == ENTRIES[0]


def test_the_later_of_two_lines_counts_and_keys_may_be_made_of_several_fields(tmp_path):
    store = JsonlStore(tmp_path / "lines", lambda entry: (entry["row"], entry["n"]), ascii_only=False)
    store.add({"row": 1, "n": 2, "text": "é"}, {"row": 1, "n": 3}, {"row": 1, "n": 2, "text": "ö"})
    assert store.find((1, 2)) == {"row": 1, "n": 2, "text": "ö"}
    assert len(store) == 2
    assert "ö".encode() in (tmp_path / "lines").read_bytes()


def test_two_writers_keep_what_both_added_and_each_finds_its_own(tmp_path):
    path = tmp_path / "lines"
    one, other = (JsonlStore(path, seconds=seconds) for seconds in (0.0, 100.0))
    for number in range(4):
        one.add({"key": f"one {number}"})
        other.add({"key": f"other {number}", "long": "x" * number}, {"key": f"more {number}"})
    other.close()
    assert [one.find(f"one {number}") for number in range(4)] == [{"key": f"one {number}"} for number in range(4)]
    assert [other.find(f"more {number}") for number in range(4)] == [{"key": f"more {number}"} for number in range(4)]
    assert len(JsonlStore(path)) == 12


@pytest.mark.parametrize(("seconds", "wanted"), [(0.0, 3), (100.0, 1)])
def test_lines_are_flushed_at_once_or_when_it_is_time(tmp_path, monkeypatch, seconds, wanted):
    flushed, real = [], os.fsync

    def flush(handle):
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr("kdcli.storage.atomic._flush", flush)
    filled(tmp_path / "lines", seconds=seconds).close()
    assert flushed.count(str(tmp_path / "lines")) == wanted
    assert flushed[1] == str(tmp_path), "the entry of a new file, once"
    assert len(flushed) == wanted + 1


def test_what_the_disk_refuses_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"DISK-01.*lines"):
        JsonlStore(tmp_path / "file" / "lines")
    with pytest.raises(MachineError, match="No such file or directory"):
        JsonlStore(tmp_path / "gone" / "lines").add(ENTRIES[0])
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="is a link"):
        JsonlStore(tmp_path / "link").add(ENTRIES[0])
    assert not (tmp_path / "elsewhere").exists()


def test_old_files_go_once_nothing_needs_them(tmp_path):
    store = RotatingStore(tmp_path / "run" / "rank-0")
    with pytest.raises(MachineError):
        RotatingStore(tmp_path / "gone" / "run" / "rank-0").add(ENTRIES[0])
    for number in range(4):
        store.add({"key": str(number)})
        store.rotate(2)
    assert [store.find(str(number)) is None for number in range(4)] == [True, True, False, False]
    assert len(RotatingStore(tmp_path / "run" / "rank-0")) == len(store) == 2
