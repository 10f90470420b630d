import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcli.config.names import ALIASES, nearest
from kdcli.config.resolve import all_flags, describe, flag_paths, iter_settings, resolve, setting_names
from kdcli.config.resolve import to_yaml as config_yaml
from kdcli.config.schema import (
    KINDS,
    CompareConfig,
    DistillConfig,
    EvalConfig,
)
from kdcli.config.yaml_file import read_config, to_yaml
from kdcli.errors import InputError, KDError, UsageError


@pytest.fixture
def write(tmp_path):
    def make(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


# Precedence: each stronger source is added and must win, in turn.
def test_precedence(write):
    file = write("train: {lr: 0.3}")
    places = [
        ({}, 5e-4),
        ({"file": file}, 0.3),
        ({"environ": {"KD_LR": "0.2"}}, 0.2),
        ({"sets": ["train.lr=0.1"]}, 0.1),
        ({"flags": {"lr": "0.05"}}, 0.05),
    ]
    given_so_far = {}
    for more, expected in places:
        given_so_far |= more
        assert resolve(DistillConfig, **given_so_far).train.lr == expected


def test_precedence_is_per_setting(write):
    config = resolve(DistillConfig, file=write("train: {lr: 0.3, epochs: 2}"), flags={"lr": "1"})
    assert (config.train.lr, config.train.epochs) == (1.0, 2.0)


def test_the_last_set_wins():
    assert resolve(DistillConfig, sets=["train.lr=1", "train.lr=2"]).train.lr == 2.0


def test_every_flag_reaches_a_setting_of_some_command():
    for flag in all_flags():
        assert any(flag in flag_paths(iter_settings(kind)) for kind in KINDS), flag


def test_every_alias_is_a_flag():
    assert set(ALIASES.values()) <= {*all_flags(), "config", "resume"}


def test_data_is_what_is_read():
    assert resolve(DistillConfig, flags={"data": "a"}).data.train == "a"
    assert resolve(CompareConfig, flags={"data": "a"}).data.train == "a"
    assert (
        resolve(EvalConfig, flags={"data": "a", "limit": "3"}).data
        == EvalConfig(data={"eval": "a", "eval_limit": 3}).data
    )


def test_a_variable_of_another_command_is_left_alone():
    assert resolve(EvalConfig, environ={"KD_STUDENT": "s", "KD_BATCH_SIZE": "no", "KD_DEBUG": "1"}) == EvalConfig()


def test_texts_are_read_by_type():
    config = resolve(
        DistillConfig,
        sets=[
            "train.betas=0.8,0.9",
            "data.columns=prompt=q, completion=a",
            "evaluation.metrics=rougeL, ece",
            "data.skip_bad=true",
            "train.max_steps=null",
            "student=123",
            "evaluation.generation.seeds=7",
        ],
    )
    assert config.train.betas == (0.8, 0.9)
    assert config.data.columns == {"prompt": "q", "completion": "a"}
    assert config.evaluation.metrics == ("rougeL", "ece")
    assert config.data.skip_bad
    assert config.train.max_steps is None
    assert config.student == "123"
    assert config.evaluation.generation.seeds == (7,)


def test_files_are_read_by_their_own_types(write):
    text = "loss: no\ntrain: {lr: 1e-4, epochs: 2}\ndata:\n  columns: {prompt: q}\nevaluation: {metrics: rougeL}\n"
    config = resolve(DistillConfig, file=write(text))
    assert (config.loss, config.train.lr, config.train.epochs) == ("no", 1e-4, 2.0)
    assert (config.data.columns, config.evaluation.metrics) == ({"prompt": "q"}, ("rougeL",))


def test_a_setting_is_found_by_its_earlier_name(write):
    assert resolve(DistillConfig, file=write("data: {made: text}")).data.teacher_text == "text"
    assert resolve(DistillConfig, sets=["data.made=text"]).data.teacher_text == "text"
    assert "data.made" not in setting_names(iter_settings(DistillConfig))


def test_an_empty_file_sets_nothing(write):
    assert resolve(DistillConfig, file=write("# only a remark\n")) == DistillConfig()


def test_paths_are_expanded(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DATA", "/data")
    config = resolve(DistillConfig, file=write("teacher: ~/T\nstudent: $DATA/S\ndata: {train: '${DATA}/a'}"))
    assert (config.teacher, config.student, config.data.train) == ("/home/ada/T", "/data/S", "/data/a")
    assert resolve(DistillConfig, flags={"loss": "$x"}).loss == "$x"


FILE_ERRORS = [
    ("train:\n  leraning_rate: 1", "CFG-06", "train.leraning_rate is not a setting. Fix: did you mean train.lr?"),
    ("learning_rate: 1", "CFG-06", "did you mean train.lr?"),
    ("trian: {lr: 1}", "CFG-06", "trian is not a setting"),
    ("train:\n  lr: '1e-4'", "CFG-07", 'train.lr must be a number > 0, got text "1e-4". Fix: remove the quotes'),
    ("train: {lr: .nan}", "CFG-08", "must be a number > 0, got nan"),
    ("train: {lr: inf}", "CFG-08", "got inf"),
    (f"train: {{seed: {2**70}}}", "CFG-09", "must be a whole number >= 0 and < 2**63"),
    ("train: {epochs: 0}", "CFG-09", "must be a number > 0, got 0"),
    ("train:\n  lr: 1\n  epochs: 2\n  lr: 3", "CFG-10", "line 4 repeats line 2"),
    ("train: {batch_size: true}", "CFG-11", "must be a whole number >= 1, got true"),
    ("train: {batch_size: 2.5}", "CFG-11", "must be a whole number >= 1, got 2.5"),
    ("train: {betas: [0.9]}", "CFG-11", "must be 2 of: a number >= 0 and < 1, got [0.9]"),
    ("loss: 5", "CFG-11", "loss must be text, got 5"),
    ("train: 5", "CFG-11", "train is a section, got a value"),
    ("hardware: {device: cdua}", "CFG-11", "did you mean cuda?"),
    ("evaluation: {metrics: {a: 1}}", "CFG-11", "evaluation.metrics must be a list of: text"),
    ("[" * 100_000, "CFG-15", "nested too deeply"),
    ("data: {train: $NOT_SET_ANYWHERE/x}", "CFG-16", "variable NOT_SET_ANYWHERE is not set"),
    ("output: ''", "CLI-10", "the path is empty"),
    ("train:\n\tlr: 3", "CFG-03", "line 2 column 1"),
    ("train: {lr: 1", "CFG-03", "line 2 column 1: "),
    ("- a", "CFG-03", "settings are needed"),
    ("a: 1\n---\nb: 2", "CFG-03", "second document"),
    ("a: &x 1\nb: *x", "CFG-10", "anchors and aliases are not read"),
    ("a: !!python/object/apply:os.system [ls]", "CFG-03", "tags"),
    ("[a]: 1", "CFG-03", ""),
    (b"\xff\xfea\x00", "CFG-04", "not UTF-8 (byte 0xff at 0)"),
    (b"a: \x01", "CFG-03", ""),
    (b"#" * (2**20 + 1), "CFG-05", "larger than 1 MiB"),
]


@pytest.mark.parametrize("text, code, message", FILE_ERRORS, ids=[str(i) for i in range(len(FILE_ERRORS))])
def test_a_wrong_file_is_refused_in_one_line(write, text, code, message):
    with pytest.raises(InputError) as caught:
        resolve(DistillConfig, file=write(text))
    assert caught.value.code == code
    assert message in str(caught.value)
    assert "run.yaml" in caught.value.where
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    for path, code in ((tmp_path / "no.yaml", "CFG-01"), (tmp_path, "CFG-02"), (Path("/dev/zero"), "CFG-02")):
        with pytest.raises(InputError) as caught:
            resolve(DistillConfig, file=path)
        assert caught.value.code == code


TEXT_ERRORS = [
    ({"flags": {"lr": "1,5e-4"}}, "CLI-05", '--lr: must be a number > 0, got "1,5e-4". Fix: use a point: 1.5e-4'),
    ({"flags": {"lr": "nan"}}, "CLI-04", "--lr"),
    ({"flags": {"lr": "-inf"}}, "CLI-04", "--lr"),
    ({"flags": {"max_steps": "-3"}}, "CLI-07", "--max-steps: must be a whole number >= 1"),
    ({"flags": {"max_steps": "2.5"}}, "CLI-07", "--max-steps"),
    ({"flags": {"max_steps": "0"}}, "CLI-07", "--max-steps"),
    ({"flags": {"device": "cud"}}, "CLI-06", "did you mean cuda?"),
    ({"flags": {"columns": "prompt"}}, "CLI-06", '"prompt" is not name=column'),
    ({"flags": {"output": ""}}, "CLI-10", "--output: the path is empty"),
    ({"sets": ["train.stepz=3"]}, "CLI-19", "did you mean train.max_steps?"),
    ({"sets": ["train=3"]}, "CLI-19", "train is a section"),
    ({"sets": ["lr"]}, "CLI-19", "expected key=value"),
    ({"sets": ["train.seed=" + "9" * 30]}, "CLI-07", "2**63"),
    ({"environ": {"KD_LR": "fast"}}, "CLI-05", "variable KD_LR: must be a number > 0"),
    ({"environ": {"KD_BATCHSIZE": "3"}}, "CLI-19", "did you mean KD_BATCH_SIZE?"),
]


@pytest.mark.parametrize("given, code, message", TEXT_ERRORS, ids=[str(i) for i in range(len(TEXT_ERRORS))])
def test_a_wrong_text_is_refused_in_one_line(given, code, message):
    with pytest.raises(UsageError) as caught:
        resolve(DistillConfig, **given)
    assert caught.value.code == code
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-2", (0, 1, 2)), ("5-5", (5,)), ("7,0-1", (7, 0, 1)), ("[0-1]", (0, 1)), (" 1, 3-4 ", (1, 3, 4))],
)
def test_a_range_of_seeds_stands_for_each_of_them(text, seeds):
    assert resolve(CompareConfig, flags={"seeds": text}, environ={}).seeds == seeds


@pytest.mark.parametrize("text", ["2-0", "0-", "-3", "0-2-4", "0-9999999", "1-٣", "0..2"])
def test_what_is_no_range_of_seeds_is_refused(text):
    with pytest.raises(UsageError, match="CLI-07"):
        resolve(CompareConfig, flags={"seeds": text}, environ={})


@pytest.mark.parametrize("flags", [{"seeds": "1,1,2"}, {"losses": ["fkl", "fkl"]}])
def test_a_value_given_twice_is_refused(flags):
    with pytest.raises(UsageError, match="given twice"):
        resolve(CompareConfig, flags=flags)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "teacher" in kind.model_fields])
def test_a_written_config_can_be_fed_back(write, kind):
    more = (
        {}
        if "evaluation" not in kind.model_fields
        else {"evaluation": {"generation": {"temperature": 1e-5, "seeds": [3]}}}
    )
    filled = kind(
        teacher="~x y",
        output="1e-4",
        data={"train": "no", "columns": {"prompt": "null"}, "template": 'a: "b"\n#{instruction}\u202e'},
        **more,
    )
    config = filled.model_copy(update={"teacher": "teacher"})
    assert resolve(kind, file=write(config_yaml(config))) == config


NAMES = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=8)
PATIENT = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
PLAIN = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text()


@PATIENT
@given(st.dictionaries(NAMES, PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(NAMES, PLAIN, max_size=3)))
def test_yaml_reads_back_what_it_wrote(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_text(to_yaml(values), encoding="utf-8")
    found = {key: node.plain() for key, node in read_config(path).items()}
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


@PATIENT
@given(st.binary(max_size=80) | st.text(alphabet=" \n:-[]{}&*!|>'\"#%@`,?~abc01.\t", max_size=60).map(str.encode))
def test_only_our_errors_come_out_of_a_file(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_bytes(raw)
    with contextlib.suppress(KDError):
        resolve(DistillConfig, file=path)


def test_yaml_agrees_with_pyyaml_on_structure(write):
    text = "a:\n  b: [x, y]\n  c: {d: 'e f'}\ng: |\n  two\n  lines\n"
    assert {key: node.plain() for key, node in read_config(write(text)).items()} == yaml.safe_load(text)


def test_every_setting_can_say_what_it_takes():
    for kind in KINDS:
        for setting in iter_settings(kind).values():
            assert describe(setting.schema)
            assert setting.info.description, setting.path


def test_nearest_is_silent_when_nothing_is_near():
    names = setting_names(iter_settings(DistillConfig))
    assert nearest("xyzzy", names) is None
    assert nearest("train.learning_rate", names) == "train.lr"
    assert nearest("num_train_epoch", names) == "train.epochs"
