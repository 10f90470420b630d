"""The commands of the pages run, in the order in which they stand there, on models of two layers."""

import gzip
import json
import shutil
from itertools import pairwise

import pytest

import classes
import tiny
import vision
from kdcli.config.presets import config_path
from shell import kd
from test_site import LINES

MODELS = ("T", "S", "TEACHER", "STUDENT", "stories260K", "stories3M", "stories3M-ternary", "other-model")
ROWS = ("train.jsonl", "test.jsonl", "chat.jsonl", "prompts.jsonl")
NOT_RUN = {
    "recipes": "models of 0.5 to 14 billion parameters, from the hub",
    "judge": "a server, and scores of a judge",
    "text-metrics": "answers in Chinese that lie elsewhere",
    "sources": "rows without answers, and a server",
    "minillm": "a second corpus, and sampling for hundreds of steps",
    "tokenizers": "a student of another tokenizer; test_cross_tokenizer.py runs such lines",
    "grid": "a dozen runs and more; test_compare.py runs smaller grids",
    "learning-rate": "eighteen runs; test_compare.py tunes among fewer",
    "feature-matching": "layers of a model of eight; tests of feature matching map those of small ones",
    "progressive": "a line that is refused, as the page says",
}
"""Page -> why its commands are not run here; each is parsed all the same."""
ELSEWHERE = (
    "http://",
    "--gpus",
    "slurm",
    "MODELS/",
    "tensorboard",
    "--device edge.yaml",
    "agree=true",
    "rationale-seqkd",
)
"""What a line names that is not here: a server, GPUs, a cluster, a library that is an extra, a device's sheet; and a
teacher that is right, which test_rationale_seqkd.py has."""
SOON = ("presets", "cache", "rows")
"""Pages that run with every change; the others in ``make test-full``."""

PAGES = {page.stem: [line for one, line in LINES if one == page] for page, _ in LINES}
RUN = {
    name: [line for line in lines if not any(word in " ".join(line) for word in ELSEWHERE)]
    for name, lines in PAGES.items()
    if name not in NOT_RUN
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("pages")
    for seed, name in enumerate(MODELS):
        sizes = {"max_position_embeddings": 1024, "num_attention_heads": 4, "num_key_value_heads": 4}
        tiny.folder(home / name, seed=seed, **sizes)
    for name in ROWS:
        tiny.rows(home / name, 8)
    for seed, name in enumerate(("VLM", "SMALL_VLM")):
        vision.folder(home / name, "llava", seed=seed)
    vision.rows(home / "pictures.jsonl", 4)
    (home / "train.jsonl.gz").write_bytes(gzip.compress((home / "train.jsonl").read_bytes()))
    pair = (
        "--teacher",
        "T",
        "--student",
        "S",
        "--data",
        "train.jsonl",
        "--max-steps",
        "1",
        "--eval-data",
        "test.jsonl",
    )
    pair += ("--metric", "perplexity")
    for loss in ("akl", "fkl"):
        answer = kd("distill", *pair, *LITTLE, "--loss", loss, "-o", f"runs/{loss}", folder=home)
        assert answer.code == 0, answer.err
    return home


LITTLE = ("--device", "cpu", "--threads", "1", "--quiet")
NEEDED = {"--teacher": "./T", "--student": "./S", "--data": "train.jsonl", "-o": "out"}


def with_categories(path):
    """Rows of four categories, to be split among clients."""
    rows = [json.loads(line) for line in tiny.rows(path, 32).read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | {"category": "abcd"[number % 4]}) for number, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


ROWS_OF = {"classification": classes.rows, "federated": with_categories}
"""Page -> what writes its rows, where they are no plain prompts and answers."""


def has_student(line):
    """Whether a line says which student it trains: itself, as an axis, or in its preset."""
    presets = [config_path(value) for flag, value in pairwise(line) if flag in ("-c", "--config")]
    texts = [path.read_text(encoding="utf-8") for path in presets if path.is_file()]
    return any("\nstudent:" in text for text in texts) or any(word.startswith("student=") for word in line)


def small(line):
    """A line with what it leaves out, and with limits that make it short."""
    command, *rest = line
    if command in ("federate", "supernet"):
        rest += [*(() if "--max-steps" in rest else ("--max-steps", "3")), "--batch-size", "4", *LITTLE]
    elif command in ("distill", "compare") and "--status" not in rest and not any("/" in word for word in rest[:1]):
        needed = NEEDED | ({"--eval-data": "test.jsonl"} if command == "compare" else {})
        needed = {flag: value for flag, value in needed.items() if flag != "--student" or not has_student(rest)}
        rest += [word for flag, value in needed.items() if flag not in rest for word in (flag, value)]
        rest += ["--max-steps", "1", "--batch-size", "4", "--set", "evaluation.generation.max_new_tokens=2", *LITTLE]
    elif command == "eval" and not {"--edge", "--palette"} & set(rest):
        length = [] if "exposure_bias" in " ".join(rest) else ["--max-new-tokens", "2"]
        rest += [*length, "--sampling-seeds", "1", "--limit", "2", *LITTLE]
    elif command in ("cache", "eval"):
        rest += LITTLE
    return [command, *rest]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page in SOON else pytest.mark.full) for page, lines in RUN.items() if lines]
)
def test_the_commands_of_a_page_run(made, tmp_path, page):
    home = shutil.copytree(made, tmp_path / "home")
    for name in ROWS if page in ROWS_OF else ():
        ROWS_OF[page](home / name)
    for line in RUN[page]:
        if "-o" in line and line[0] == "distill":  # what was made to be read, made anew by this page
            shutil.rmtree(home / line[line.index("-o") + 1], ignore_errors=True)
        answer = kd(*small(line), folder=home)
        assert answer.code == 0, (line, answer.err)


def test_a_page_whose_commands_are_not_run_is_there_and_has_some():
    assert all(PAGES.get(page) for page in NOT_RUN)
    assert sum(map(len, RUN.values())) >= 20
