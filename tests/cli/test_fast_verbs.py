"""What is looked up or refused before a model is needed imports no library that loads one."""

import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch

from kdcli.config.trackers import TRACKERS
from kdcli.errors import UsageError
from kdcli.losses.build import build_objective
from kdcli.registry.options import options
from kdcli.registry.outline import check_objective, outline
from kdcli.registry.registry import LOSSES, SOURCES
from kdcli.report.tables import FORMS
from kdcli.sources.build import build_source
from kdcli.storage.digests import write_digests
from kdcli.study import stored_comparison
from kdcli.study.results import read_comparison

EARLIER = Path(__file__).parents[1] / "earlier"
HEAVY = (
    "torch", "transformers", "evaluate", "pandas", "datasets", "accelerate", "matplotlib", "safetensors", "scipy",
    "pyarrow", "kdcli.comparison.aggregate",
)  # fmt: skip
PAIR = ("--student", "student", "--teacher", "teacher")

ABSENT = (
    [] if sys.platform == "darwin" else ["mps", *(["cuda"] if torch.version.cuda is torch.version.hip is None else [])]
)
LINES = (
    ["distill", *PAIR, "--data", "train.jsonl", "-o", "new"],
    ["compare", "fkl", "rkl", *PAIR, "--data", "train.jsonl", "--eval-data", "test.jsonl", "-o", "new"],
    ["eval", "student", "--data", "test.jsonl"],
)

VERBS = [
    (0, ["verify", "study"]),
    (0, ["compare", "study", "--status"]),
    *((0, ["compare", "study", "--to", f"out.{form}"]) for form in (*FORMS, "parquet")),
    (2, ["compare", "study", "--to", "table.tex", "--columns", "nothing"]),
    (2, ["compare", "nope", "--to", "table.tex"]),
    (2, ["compare", "./nope", "--to", "table.tex"]),
    (2, ["compare", "./nope", "--status"]),
    (0, ["estimate", "student"]),
    (0, ["estimate", "teacher/config.json", "--memory", "8GiB", "--bandwidth", "50GB/s", "--flops", "2TFLOPS"]),
    (0, ["estimate", "study/cells/fkl-s0-cf35eebf"]),
    (3, ["estimate", "./nope"]),
    (3, ["estimate", "nope.json"]),
    (3, ["distill", *PAIR, "--data", "nope.jsonl", "-o", "new"]),
    (3, ["plan", *PAIR, "--data", "nope.jsonl"]),
    (3, ["distill", "--student", "./nope", "--teacher", "teacher", "--data", "train.jsonl", "-o", "new"]),
    (2, ["distill", *PAIR, "--data", "train.jsonl", "--loss", "jsd:beta=1.7", "-o", "new"]),
    (2, ["distill", *PAIR, "--data", "train.jsonl", "--loss", "akl@student:rate=2", "-o", "new"]),
    (2, ["compare", "fkl", "akl:mu=3", *PAIR, "--data", "train.jsonl", "--eval-data", "test.jsonl", "-o", "new"]),
    (3, ["compare", "fkl", "akl", *PAIR, "--data", "train.jsonl", "--eval-data", "nope.jsonl", "-o", "new"]),
    (3, ["eval", "student", "--data", "nope.jsonl"]),
    *((4, [*line, "--device", device]) for device in ABSENT for line in LINES),
    (3, ["cache", "--teacher", "./nope", "--data", "train.jsonl", "-o", "new"]),
    (3, ["report", "nope"]),
    (3, ["report", "student", "-o", "page.html"]),
    (3, ["clean", "nope"]),
    (3, ["rerun", "student", "-o", "new"]),
    (3, ["export", "./nope", "--to", "gguf", "-o", "new"]),
    (3, ["student", "cut:layers=1", "--teacher", "./nope", "-o", "new"]),
    (3, ["judge", "nope.jsonl", "--scores", "nope.jsonl"]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = copytree(EARLIER, tmp_path_factory.mktemp("place") / "earlier")
    stored_comparison.write(made / "study", read_comparison(made / "study"))
    write_digests(made / "study")
    return made


@pytest.mark.parametrize("code, arguments", VERBS, ids=[" ".join(row[1]) for row in VERBS])
def test_what_needs_no_model_imports_none(code, arguments, place):
    script = (
        "import sys; from kdcli.cli.app import run; code = run(sys.argv[1:]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == f"[] {code}", done.stderr


PARTS = [(registry, name) for registry in (LOSSES, SOURCES) for name in registry.table]


@pytest.mark.parametrize("registry, name", PARTS, ids=[name for _, name in PARTS])
def test_options_read_from_the_source_text_are_those_of_the_class(registry, name):
    read, true = (options(kind) for kind in (outline(registry.table[name], registry.kind), registry.resolve(name)))
    assert [(one.name, one.type, one.bounds, one.text) for one in read] == [
        (one.name, one.type, one.bounds, one.text) for one in true
    ]
    plain = [one for one in true if one.type not in ("loss", "source")]
    assert [one.default for one in plain] == [one.default for one in read if one.type not in ("loss", "source")]


WRONG = [
    "jsd:beta=1.7", "jsd:beta=1", "jsd:beta=nan", "akl:mu=x", "akl:nope=1", "akl:head_rule=papr", "fkl:temperature=0",
    "0.5*ce+0.5*skl:alpha=-1", "atkd:hard=akl,hard.mu=7", "akl:mu=1,mu.x=2", "ramp:loss=(fkl+akl:mu=9)",
    "fkl:scale_tau2=perhaps",
]  # fmt: skip


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_refused_early_is_refused_in_the_words_of_the_building(spec):
    with pytest.raises(UsageError) as early:
        check_objective(spec)
    with pytest.raises(UsageError) as late:
        build_objective(spec)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize("name", SOURCES.table)
def test_sources_with_a_wrong_option_are_refused_early(name):
    with pytest.raises(UsageError) as early:
        check_objective(f"fkl@{name}:nothing_such=1")
    with pytest.raises(UsageError) as late:
        build_source(f"{name}:nothing_such=1")
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    "spec", ["jsd:beta=0.3", "0.5*ce+0.5*akl:mu=0.6", "atkd:hard=akl,hard.mu=0.7", "fkl@student:rate=0.5"]
)
def test_what_is_right_passes(spec):
    check_objective(spec)


def test_trackers_are_those_that_accelerate_knows():
    from accelerate.utils import LoggerType

    assert {str(kind.value) for kind in LoggerType} == {"all", *TRACKERS}
