import gzip
import json
import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from kdcli.config.schema import DataConfig
from kdcli.data import parquet
from kdcli.data.readers import Record
from kdcli.data.rows import read_rows
from kdcli.errors import InputError, KDError

ROWS = [{"prompt": f"say {letter}:", "completion": letter} for letter in "abc"]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, content: bytes):
    path.write_bytes(content)
    return str(path)


def read(path, **settings):
    return read_rows(str(path), DataConfig(**settings))


def save_csv(path):
    write(path, b"\xef\xbb\xbfprompt,completion\r\nsay a:,a\r\nsay b:,b\r\n\r\nsay c:,c\r\n")


def save_tsv(path):
    write(path, b"prompt\tcompletion\nsay a:\ta\nsay b:\tb\nsay c:\tc\n")


def save_parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def save_folder(path):
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(path)


@pytest.mark.parametrize(
    "name, save",
    [
        ("r.jsonl", lambda path: write(path, jsonl(ROWS))),
        ("bom.jsonl", lambda path: write(path, b"\xef\xbb\xbf" + jsonl(ROWS).replace(b"\n", b"\r\n\r\n"))),
        ("no_end.jsonl", lambda path: write(path, jsonl(ROWS).rstrip())),
        ("r.jsonl.gz", lambda path: write(path, gzip.compress(jsonl(ROWS)))),
        ("r.json", lambda path: write(path, json.dumps(ROWS, indent=1).encode())),
        ("lines.json", lambda path: write(path, jsonl(ROWS))),
        ("r.csv", save_csv),
        ("r.tsv", save_tsv),
        ("r.parquet", save_parquet),
        ("saved", save_folder),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, save):
    save(tmp_path / name)
    report = read(tmp_path / name)
    assert [(row.prompt, row.responses) for row in report.rows] == [(r["prompt"], (r["completion"],)) for r in ROWS]
    assert report.bad == ()
    assert report.rows[1].where.startswith(name)
    assert len(report.digest) == 64
    assert f"{name}: 3 prompt rows (prompt, completion)" in report.notes


def test_digest_is_that_of_the_bytes(tmp_path):
    import hashlib

    path = write(tmp_path / "r.jsonl", jsonl(ROWS))
    assert read(path).digest == hashlib.sha256(jsonl(ROWS)).hexdigest()


FORMS = [
    ({"prompt": "p", "completion": "c"}, ("prompt", "p", "", ("c",))),
    ({"prompt": "p", "response": "c"}, ("prompt", "p", "", ("c",))),
    ({"instruction": "i", "input": "x", "output": "o"}, ("instruction", "i", "x", ("o",))),
    ({"instruction": "i", "context": "", "response": "o", "category": 3}, ("instruction", "i", "", ("o",))),
    ({"instruction": "i", "input": None, "output": ["o", "oo"]}, ("instruction", "i", "", ("o", "oo"))),
    ({"prompt": "P", "instruction": "i", "output": "o"}, ("instruction", "i", "", ("o",))),
    ({"text": "once"}, ("text", "", "", ("once",))),
]


@pytest.mark.parametrize("fields, expected", FORMS)
def test_forms_are_told_by_their_columns(tmp_path, fields, expected):
    row = read(write(tmp_path / "r.jsonl", jsonl([fields]))).rows[0]
    assert (row.form, row.prompt, row.context, row.responses) == expected


def test_messages_end_with_the_last_assistant_turn(tmp_path):
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "ciao")]
    messages = [{"role": role, "content": content} for role, content in [*turns, ("user", "?")]]
    row = read(write(tmp_path / "r.jsonl", jsonl([{"messages": messages}]))).rows[0]
    assert row.responses == ("ciao",)
    assert list(row.messages) == messages[:4]


def test_an_input_column_that_first_comes_late_is_read(tmp_path):
    rows = [{"instruction": "i", "output": "o"}] * 150 + [{"instruction": "i", "context": "c", "output": "o"}]
    assert read(write(tmp_path / "r.jsonl", jsonl(rows))).rows[-1].context == "c"


def test_columns_can_be_mapped(tmp_path):
    path = write(tmp_path / "r.jsonl", jsonl([{"question": "q", "answer": "a", "text": "t"}]))
    row = read(path, columns={"prompt": "question", "completion": "answer"}).rows[0]
    assert (row.form, row.prompt, row.responses) == ("prompt", "q", ("a",))
    assert read(path).rows[0].form == "text"


def test_limit_stops_reading(tmp_path):
    path = write(tmp_path / "r.jsonl", jsonl([*ROWS, {"prompt": "late"}]))
    assert len(read_rows(path, DataConfig(), limit=2).rows) == 2
    with pytest.raises(InputError):
        read_rows(path, DataConfig(), limit=4)


def lines(*parts: bytes) -> bytes:
    return b"".join(part + b"\n" for part in parts)


GOOD = b'{"prompt": "a", "completion": "b"}'
BAD_LINES = [
    ("DATA-03", GOOD + b"\n" + GOOD[:-9], "line 2: the last line is cut off"),
    ("DATA-04", lines(GOOD, b"[1]"), "line 2: an object is needed, got a list"),
    ("DATA-04", lines(GOOD, b"7"), "line 2: an object is needed, got a number"),
    ("DATA-04", lines(GOOD, b'{"prompt": a}'), "line 2: not JSON"),
    ("DATA-04", lines(GOOD, b"[" * 200_000), "line 2: nested too deeply"),
    ("DATA-05", lines(GOOD, b'{"prompt": "a", "completon": "b"}'), '"completion" is missing (it has "completon")'),
    ("DATA-06", lines(GOOD, b'{"prompt": null, "completion": "b"}'), 'line 2: "prompt" must be text, got null'),
    ("DATA-06", lines(GOOD, b'{"prompt": 3, "completion": "b"}'), 'line 2: "prompt" must be text, got a number'),
    ("DATA-06", lines(GOOD, b'{"prompt": ["a"], "completion": "b"}'), 'line 2: "prompt" must be text, got a list'),
    ("DATA-06", lines(GOOD, b'{"prompt": "a", "completion": ["b", 1]}'), '"completion[1]" must be text, got a number'),
    ("DATA-06", lines(GOOD, b'{"prompt": "a", "completion": true}'), "got true or false"),
    ("DATA-07", lines(GOOD, b'{"prompt": "a", "completion": " \\n"}'), 'line 2: empty "completion"'),
    ("DATA-07", lines(GOOD, b'{"prompt": "a", "completion": []}'), 'line 2: empty list in "completion"'),
    ("DATA-07", lines(GOOD, b'{"prompt": "", "completion": "b"}'), 'line 2: empty "prompt"'),
    ("DATA-08", lines(GOOD, b'{"prompt": "ab\xff", "completion": "b"}'), "line 2: invalid UTF-8 at character 15"),
    ("DATA-08", lines(GOOD, b'{"prompt": "abc\\ud800", "completion": "b"}'), "half a surrogate pair at character 4"),
    ("DATA-19", lines(*[b'{"id": "x", "prompt": "a", "completion": "b"}'] * 2), 'id "x" was already at r.jsonl line 1'),
    ("DATA-05", lines(b'{"promt": "a", "completion": "b"}'), "--columns prompt=promt"),
    ("DATA-05", lines(b'{"q": "a", "z": "b"}'), "columns q, z are no known form"),
    ("DATA-07", lines(b'{"messages": [{"role": "user", "content": "a"}]}'), "no assistant turn"),
    ("DATA-07", lines(b'{"messages": [{"role": "assistant", "content": "a"}]}'), "nothing comes before"),
    ("DATA-05", lines(b'{"messages": [{"role": "user"}]}'), "messages[0] needs role and content"),
    ("DATA-06", lines(b'{"messages": "hi"}'), "must be a list of role and content, got text"),
    ("DATA-02", b"\n \n", "the file holds no rows"),
    ("DATA-02", b"", "the file is empty"),
]  # fmt: skip


@pytest.mark.parametrize("code, content, said", BAD_LINES)
def test_a_bad_line_is_one_line_with_its_place(tmp_path, code, content, said):
    path = write(tmp_path / "r.jsonl", content)
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    assert said in text
    assert "\n" not in text
    assert ". Fix: " in text


def test_several_bad_lines_are_listed_and_counted(tmp_path):
    path = write(tmp_path / "r.jsonl", lines(GOOD, *[b"3"] * 9))
    with pytest.raises(InputError, match=r"line 2: .*\(9 bad rows in all; line 3: .*line 6: [^;]*; …\)"):
        read(path)


def test_skip_bad_leaves_them_out_and_counts_them(tmp_path):
    path = write(tmp_path / "r.jsonl", lines(GOOD, b"3", b'{"prompt": "a"}', GOOD) + GOOD[:-9])
    report = read(path, skip_bad=True)
    assert len(report.rows) == 2
    assert [line.split(": ")[0] for line in report.bad] == ["r.jsonl line 2", "r.jsonl line 3", "r.jsonl line 5"]
    assert any("3 bad rows left out (line 2: an object is needed" in note for note in report.notes)
    with pytest.raises(InputError, match=r"0 usable rows; all 1 are bad"):
        read(write(tmp_path / "n.jsonl", lines(b'{"prompt": "a", "completion": ""}')), skip_bad=True)


def test_over_long_lines_are_refused_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr("kdcli.data.readers.MAX_LINE_BYTES", 100)
    path = write(tmp_path / "r.jsonl", lines(GOOD, b'{"prompt": "' + b"a" * 900 + b'"}', GOOD))
    with pytest.raises(InputError, match=r"line 2: the line is 915 bytes long, the limit is 100 bytes") as caught:
        read(path)
    assert caught.value.code == "DATA-10"
    assert [row.where for row in read(path, skip_bad=True).rows] == ["r.jsonl line 1", "r.jsonl line 3"]


def test_control_characters_are_kept_with_a_note(tmp_path):
    report = read(write(tmp_path / "r.jsonl", lines(GOOD, b'{"prompt": "a\\u0000", "completion": "\\u001b[31m"}')))
    assert report.rows[1].prompt == "a\0"
    assert any("1 row with control characters, kept as they are (first: line 2)" in note for note in report.notes)


def test_unknown_fields_and_columns_of_the_map_get_the_nearest_name(tmp_path):
    path = write(tmp_path / "r.jsonl", jsonl([{"question": "q", "answer": "a"}]))
    with pytest.raises(KDError, match=r'unknown field "promt".*did you mean "prompt"') as caught:
        read(path, columns={"promt": "question"})
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match=r'no column "qestion" for prompt; it has question, answer.*"question"'):
        read(path, columns={"prompt": "qestion", "completion": "answer"})


BAD_FILES = [
    ("a.csv", b"prompt,completion\na,b\nc,d,e\n", "DATA-15", "line 3: the row has 3 columns, the header has 2"),
    ("a.csv", b"prompt;completion\na;b\n", "DATA-15", "delimiter seems to be ';'"),
    ("a.csv", b'prompt,completion\na,"b\n', "DATA-15", "not CSV: "),
    ("a.csv", b"prompt,prompt\na,b\n", "DATA-15", 'column "prompt" comes twice'),
    ("a.csv", b"prompt,completion\na,\xff\n", "DATA-08", "line 2: invalid UTF-8"),
    ("a.json", b'[{"prompt": "a", "completion": "b"}, 3]', "DATA-04", "item 2: an object is needed"),
    ("a.json", b'[{"prompt": "a", "completion": "b"},\n', "DATA-03", "cut off"),
    ("a.json", b'[{"prompt": "a" "completion": "b"}]', "DATA-04", "line 1: not JSON"),
    ("a.jsonl.gz", gzip.compress(jsonl(ROWS), mtime=0)[:-12], "DATA-03", "the compressed file is cut off"),
    (
        "a.jsonl.gz",
        gzip.compress(jsonl(ROWS * 99), mtime=0)[:60] + b"x" * 60,
        "DATA-03",
        "the compressed file is damaged",
    ),
    ("a.parquet", b"PAR1 but no more", "DATA-13", "cannot be read as Parquet"),
    ("a.parquet", b"words", "DATA-13", "the content is not what the ending .parquet says"),
    ("a.pkl", b"x", "DATA-13", '".pkl" files are not read'),
    ("a.pt", b"PK\x03\x04", "DATA-12", "archives are not read"),
    ("a.tar.gz", gzip.compress(b"x", mtime=0), "DATA-12", "archives are not read"),
    ("a.jsonl", b"PK\x03\x04....", "DATA-12", "archives are not read"),
    ("rows", jsonl(ROWS), "DATA-13", "no ending that says its format"),
]


@pytest.mark.parametrize("name, content, code, said", BAD_FILES, ids=[f"{row[0]}: {row[3]}" for row in BAD_FILES])
def test_files_that_cannot_be_read(tmp_path, name, content, code, said):
    with pytest.raises(InputError) as caught:
        read(write(tmp_path / name, content))
    assert caught.value.code == code
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_csv_lines_are_counted_through_line_breaks_in_cells(tmp_path):
    path = write(tmp_path / "a.csv", b'prompt,completion\n"a\n1",b\nc,\n')
    with pytest.raises(InputError, match=r'a.csv line 4: empty "completion"'):
        read(path)


def test_parquet_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 10_000] * 2000}), path)
    assert path.stat().st_size < 5_000
    monkeypatch.setattr("kdcli.data.parquet.MAX_TOTAL_BYTES", 10**7)
    monkeypatch.setattr("kdcli.data.parquet._BATCH_BYTES", 10**5)
    with pytest.raises(InputError, match=r"would expand to 19.1 MiB, over the limit of 9.54 MiB") as caught:
        read(path)
    assert caught.value.code == "DATA-11"


def test_gzip_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kdcli.data.readers.MAX_TOTAL_BYTES", 10_000)
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(lines(*[GOOD] * 1000)))
    with pytest.raises(InputError, match=r"expands to more than 9.77 KiB") as caught:
        read(path)
    assert caught.value.code == "DATA-11"


def test_a_folder_of_splits_gives_the_split_asked_for(tmp_path):
    datasets.disable_progress_bars()
    parts = {name: datasets.Dataset.from_list(ROWS[:count]) for name, count in (("train", 3), ("test", 1))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    path = str(tmp_path / "d")
    assert len(read(path).rows) == 3
    assert len(read_rows(path, DataConfig(), splits=("test",)).rows) == 1
    with pytest.raises(InputError, match=r'no split "dev"; it has .*Fix: give .*d/train or '):
        read_rows(path, DataConfig(), splits=("dev",))


def test_hub_ids_are_read_by_split_and_fail_in_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parts = {name: datasets.Dataset.from_list(ROWS[:count]) for name, count in (("train", 3), ("test", 1))}
    monkeypatch.setattr("kdcli.data.files.is_in_reach", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(parts))
    assert len(read("owner/name").rows) == 3
    assert len(read("owner/name:test").rows) == 1
    with pytest.raises(InputError, match=r'no split "dev"'):
        read("owner/name:dev")

    def fail(name):
        raise ConnectionError("no way\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"nor as a hub data set: ConnectionError: no way. Fix: ") as caught:
        read("owner/name")
    assert caught.value.code == "DATA-01"


def test_a_hub_whose_name_does_not_resolve_is_asked_for_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []

    def refuse(*_):
        raise OSError("no such host")

    def load(name):
        seen.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("offline")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"ConnectionError: offline"):
        read("owner/name")
    assert seen == [True]
    assert datasets.config.HF_HUB_OFFLINE is False


def outcome(path, **settings) -> str:
    try:
        return f"{len(read(path, **settings).rows)} rows"
    except KDError as error:
        return str(error)


def test_only_known_errors_come_out_of_damaged_files(tmp_path):
    chance = random.Random(0)
    good = jsonl([*ROWS, {"id": 1, "prompt": "é\u2028", "completion": ["x", "y"]}])
    outcomes = set()
    for number in range(400):
        content = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(content))
            content[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        path = write(tmp_path / chance.choice(["m.jsonl", "m.json", "m.csv"]), bytes(content))
        outcomes.add(outcome(path, skip_bad=bool(number % 2)))
    assert not any("\n" in told for told in outcomes)
    assert {"4 rows", "3 rows", "2 rows"} <= outcomes
    assert len(outcomes) > 100


@pytest.mark.parametrize(
    "row, prompt",
    [
        ({"prompt": "say a:"}, "say a:"),
        ({"prompt": "say a:", "completion": ""}, "say a:"),
        ({"instruction": "say a", "input": "now"}, "say a"),
        ({"messages": [{"role": "user", "content": "say a"}]}, "say a"),
        ({"messages": [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "b"}]}, "say a"),
    ],
    ids=["prompt", "empty", "instruction", "open", "answered"],
)
def test_prompts_need_no_answers(tmp_path, row, prompt):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = read_rows(str(path), DataConfig(), answered=False).rows[0]
    assert (found.prompt, found.responses) == (prompt, ("",))
    if len(str(row)) < 60:
        with pytest.raises(InputError):
            read_rows(str(path), DataConfig())


@pytest.mark.parametrize(
    "error, code, words",
    [
        (ImportError("To decode, please install 'torchcodec'."), "ENV-05", "torchcodec"),
        (ValueError("no such sound"), "DATA-13", "a row cannot be decoded: ValueError: no such sound"),
    ],
)
def test_rows_that_a_library_cannot_decode_are_no_bug(error, code, words):
    class Sounds:
        def __iter__(self):
            yield {"prompt": "a", "completion": "b"}
            raise error

    rows = parquet._rows(Sounds(), "sounds")
    assert isinstance(next(rows), Record)
    with pytest.raises(KDError) as caught:
        next(rows)
    assert caught.value.code == code
    assert words in caught.value.what
