import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import typer

from kdcli.cli import app as program
from kdcli.cli import errors
from kdcli.errors import InputError, InterruptedRunError
from shell import kd, kd_process

HEAVY = ("torch", "transformers", "evaluate", "numpy", "pandas", "scipy", "datasets", "accelerate", "matplotlib")
COMMANDS = ("distill", "eval", "compare", "demo", "losses", "metrics")
LIGHT = [
    ["--help"],
    ["--version"],
    *([command, "--help"] for command in COMMANDS),
    ["distil"],
    ["distill", "--loss", "alk"],
    ["distill", "--max-steps", "-3"],
    ["compare", "fkl"],
    ["eval", "--metric", "rougel"],
    ["losses", "show", "alk"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_help_and_usage_errors_import_nothing_heavy(arguments):
    script = (
        "import sys; from kdcli.cli.app import run; run(sys.argv[1:]);"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]; sys.exit(f'loaded {{loaded}}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_quick():
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    costs = []
    for _ in range(3):
        before = spent()
        assert kd_process("--help").code == 0
        costs.append(spent() - before)
    assert min(costs) <= 0.4


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_short_and_has_an_example(command):
    answer = kd_process(command, "--help", COLUMNS="80", TERMINAL_WIDTH="80")
    assert answer.code == 0
    assert len(answer.out.splitlines()) <= (68 if command == "compare" else 60)
    assert command in ("losses", "metrics") or f"kd {command}" in answer.out.split("Example:")[1]


def test_version():
    assert kd("--version").out == kd("-V").out
    assert kd("-V").out.startswith("kd ")


def test_without_arguments_helps():
    assert "Commands" in kd().out


USAGE = [
    (["distil"], "CLI-01", 'unknown command "distil". Fix: did you mean "distill"?'),
    (["xyzzy"], "CLI-01", "kd --help lists the commands"),
    (["losses", "shw"], "CLI-01", 'did you mean "show"?'),
    (["distill", "--learningrate", "1"], "CLI-19", "did you mean --lr?"),
    (["distill", "--per-device-batch-size", "1"], "CLI-19", "over all processes: give that number"),
    (["distill", "--per_device_train_batch_size", "1"], "CLI-19", "--batch-size counts the sequences"),
    (["distill", "--gradient-accumulation-steps", "4"], "CLI-19", "train.micro_tokens"),
    (["distill", "--bf16"], "CLI-19", "give --dtype bf16"),
    (["distill", "--report_to", "wandbb"], "CLI-20", "--student is missing"),
    (["distill", "--logging-steps", "5"], "CLI-19", "give --set train.log_every=N"),
    (["distill", "--load-in-4bit"], "CLI-19", "give --set teacher_quantization=nf4"),
    (["compare", "nostudy", "--status"], "CLI-20", "nostudy: no such folder"),
    (["compare", "nostudy", "--to", "t.md"], "CLI-20", "nostudy: no such folder"),
    (["distill", "--xyzzy"], "CLI-19", "--help lists the flags"),
    (["distill", "--lr"], "CLI-20", "--lr: a value is missing"),
    (["distill", "stray"], "CLI-00", "unexpected extra argument"),
    (["distill", "--json=maybe"], "CLI-20", "--json: takes no value"),
    (["losses", "show"], "CLI-20", "NAME is missing"),
    (["distill"], "CLI-20", "--student is missing"),
    (["distill", "--student", "s", "--data", "d"], "CLI-20", "--teacher is missing"),
    (["distill", "--student", "s", "--data", "d", "--loss", "ce"], "CLI-20", "--output is missing"),
    (["distill", "-c", "a", "-c", "b"], "CLI-14", "2 files are given"),
    (["distill", "--resume", "maybe"], "CLI-06", "must be auto or never"),
    (["distill", "--device", "cpu", "--dtype", "fp16"], "CLI-16", "use fp32 or bf16"),
    (["distill", "--loss", "0.5*"], "SPEC-01", "a term is empty"),
    (["distill", "--loss", "kl+alk"], "LOSS-01", "did you mean akl"),
    (["eval"], "CLI-20", "no model is given"),
    (["eval", "m", "--predictions", "p"], "CLI-20", "give one of them"),
    (["eval", "m"], "CLI-20", "--data is missing"),
    (["eval", "m", "--metric", "rougeL,rougel"], "METRIC-01", "did you mean rougeL?"),
    (["compare"], "CLI-18", "got 0"),
    (["compare", "fkl"], "CLI-18", "got 1"),
    (["compare", "fkl", "kl"], "CLI-08", "fkl given twice"),
    (["compare", "fkl", "rkl", "--seeds", "1,1"], "CLI-08", "1 given twice"),
    (["compare", "fkl", "rkl", "--set", "train.seed=3"], "CLI-09", "give --seeds"),
    (["compare", "runs/a", "fkl"], "CLI-18", "folders only"),
    (["compare", "runs/a"], "CLI-18", "got 1"),
    (["compare", "runs/a", "runs/b", "--lr", "1"], "CLI-09", "--lr: has no effect on finished runs"),
]


@pytest.mark.parametrize("arguments, code, message", USAGE, ids=[" ".join(row[0]) for row in USAGE])
def test_usage_errors_are_one_line(arguments, code, message, tmp_path):
    answer = kd(*arguments, folder=tmp_path)
    assert answer.code == 2
    assert answer.out == ""
    (line,) = answer.err.splitlines()
    assert line.startswith(f"kd: error[{code}]: ")
    assert message in line


def test_baseline_must_be_a_contender(tmp_path):
    needed = ["--student", "s", "--teacher", "t", "--data", "d", "--eval-data", "e", "-o", "x"]
    answer = kd("compare", "fkl", "rkl", "--baseline", "akl", *needed, folder=tmp_path)
    assert (answer.code, "choose one of fkl, rkl" in answer.err) == (2, True)


def test_output_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    needed = ["--student", "s", "--teacher", "t", "--data", "d"]
    answer = kd("distill", *needed, "-o", "file/run", folder=tmp_path)
    assert (answer.code, "file is not a folder" in answer.err) == (2, True)


SPELLINGS = [
    ["--batch-size", "x"],
    ["--batch_size", "x"],
    ["--train_batch_size", "x"],
    ["--train-batch-size=x"],
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=" ".join)
def test_other_spellings_are_the_same_flag(spelling):
    assert "--batch-size: must be a whole number" in kd("distill", *spelling).err


def test_the_error_line_shows_escapes(tmp_path):
    answer = kd("distill", "--loss", "a\x1b[31m\nkd: error[X]", folder=tmp_path)
    assert answer.code == 2
    assert "\x1b" not in answer.err
    assert len(answer.err.splitlines()) == 1


@pytest.fixture
def failing(monkeypatch):
    """A kd with one more command that raises what it is given."""

    def make(error: BaseException):
        extra = typer.Typer(cls=program.Commands, invoke_without_command=True)

        @extra.callback()
        def top():
            pass

        @extra.command("fail")
        def fail(debug: bool = False):
            raise error

        monkeypatch.setattr(program, "app", extra)
        return kd

    return make


class Panic(BaseException):
    pass


ENDINGS = [
    (
        InputError("DATA-05", "no\nresponse", where="a.jsonl", fix="add it"),
        3,
        "kd: error[DATA-05]: a.jsonl: no\\nresponse",
    ),
    (InterruptedRunError(15, "stopped, saved", fix="go on with: kd x"), 143, "kd: stopped, saved; go on with: kd x"),
    (KeyboardInterrupt(), 130, "kd: stopped at once"),
    (MemoryError(), 4, "error[ENV-02]"),
    (OSError(28, "No space left on device", "a/b"), 4, "error[ENV-01]: a/b: the disk is full"),
    (RuntimeError("PytorchStreamWriter: No space left on device"), 4, "error[ENV-01]"),
    (PermissionError(13, "Permission denied", "a/b"), 4, "error[ENV-03]: a/b: permission denied"),
    (EOFError(), 1, "error[BUG-00]: EOFError"),
    (BrokenPipeError(), 141, ""),
    (ValueError("what?"), 1, "this is a bug in kd"),
    (Panic("pattern"), 1, "error[BUG-00]: Panic: pattern"),
    (SystemExit(7), 7, ""),
]


@pytest.mark.parametrize("error, code, message", ENDINGS, ids=[repr(row[0])[:40] for row in ENDINGS])
def test_every_ending_has_its_code(failing, error, code, message, monkeypatch, tmp_path):
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path))
    answer = failing(error)("fail")
    assert answer.code == code
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert len(answer.err.splitlines()) == bool(message)


def test_sigterm_ends_a_command_in_one_line_where_nobody_else_hears_it(capsys):
    def work():
        signal.raise_signal(signal.SIGTERM)
        return 0

    assert errors.run_guarded(work, debug=False) == 143
    assert capsys.readouterr().err == "kd: stopped at once; what was saved before stays usable\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_bug_leaves_its_traceback_in_a_named_file(failing, monkeypatch, tmp_path):
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path))
    answer = failing(ValueError("what?"))("fail")
    (log,) = tmp_path.iterdir()
    assert str(log) in answer.err
    assert "ValueError: what?" in log.read_text()


def test_debug_shows_the_traceback(failing, monkeypatch, tmp_path):
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path))
    assert "Traceback" in failing(ValueError("what?"))("fail", "--debug").err
    monkeypatch.setenv("KD_DEBUG", "1")
    assert "Traceback" in failing(ValueError("what?"))("fail").err


def test_a_closed_pipe_is_silent():
    command = f"{sys.executable} -m kdcli metrics list | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=os.environ)
    assert done.stderr == ""


def test_metrics_as_json():
    cards = json.loads(kd("metrics", "list", "--json").out)
    assert {"rougeL", "ece"} <= {card["name"] for card in cards}
    assert json.loads(kd("metrics", "show", "rouge", "--json").out)["name"] == "rougeL"
    assert "rougeL" in kd("metrics", "show", "rouge").out


def test_losses_as_json():
    card = json.loads(kd("losses", "show", "adaptive_kl", "--json").out)
    assert card["name"] == "akl"
    assert "mu" in {option["name"] for option in card["options"]}
    assert "akl" in kd("losses", "show", "akl").out


def test_presets_are_listed_shown_and_taken_by_config():
    names = [card["name"] for card in json.loads(kd("presets", "list", "--json").out)]
    assert {"gkd", "minillm"} <= set(names)
    assert kd("presets").out == kd("presets", "list").out
    shown = kd("presets", "show", "gkd").out
    assert "arXiv 2306.13649" in shown
    assert "loss: jsd:beta=0.5@student:rate=0.5" in shown.splitlines()
    assert "did you mean gkd" in kd("presets", "show", "gdk").err
    assert "CLI-24" in kd("distill", "--config", "gdk").err
    assert "CLI-24" not in kd("distill", "--config", "gkd").err
    assert "CFG-01" in kd("compare", "fkl", "--config", "gkd").err
