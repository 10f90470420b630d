"""The pages as a site: it builds without a warning, its search answers questions, and its commands exist."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from kdcli.cli.app import app
from kdcli.cli.load_config import load_config
from kdcli.config.resolve import flag_paths, iter_settings
from kdcli.config.schema import KINDS, DataConfig
from kdcli.data.rows import read_rows
from kdcli.errors import KDError
from kdcli.metrics.titles import title

HOME = Path(__file__).parents[1]
PAGES = sorted((HOME / "docs").rglob("*.md"))
QUESTIONS = {
    "use my own chat data": ("data-formats.html", "quickstart.html"),
    "choose a learning rate": ("learning-rate.html",),
    "run on 4 GPUs": ("recipes.html", "several-processes.html"),
    "7B teacher 24 GB": ("recipes.html",),
    "Qwen Llama Gemma": ("recipes.html",),
    "add an objective": ("add-a-loss.html",),
    "read the interval": ("intervals.html",),
    "cite": ("faq.html",),
    "reproduce a table": ("faq.html", "results.html"),
    "export to llama.cpp GGUF ONNX MLX Ollama": ("export.html",),
    "quantise the student": ("export.html",),
    "push to the hub": ("export.html",),
    "wandb trackio mlflow tensorboard": ("trackers.html",),
    "notebook": ("python.html",),
    "python without the CLI": ("python.html",),
    "install upgrade uninstall": ("quickstart.html",),
    "error codes": ("errors.html",),
    "glossary": ("glossary.html",),
    "quickstart": ("quickstart.html",),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config as site_config

    folder = tmp_path_factory.mktemp("site")
    build(site_config(str(HOME / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture(scope="module")
def search(site):
    from lunr import lunr

    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    index = lunr("location", [{"field_name": "title", "boost": 1000}, "text"], entries)

    def pages(question: str) -> list[str]:
        found = [hit["ref"].partition("#")[0] for hit in index.search(question)]
        return list(dict.fromkeys(found))

    return pages


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_by_one_of_the_first_three_hits(question, search):
    assert set(search(question)[:3]) & set(QUESTIONS[question]), search(question)[:5]


def test_every_page_is_in_the_contents_and_nothing_is_fetched(site):
    from mkdocs.config import load_config as site_config

    text = json.dumps(site_config(str(HOME / "mkdocs.yml"))["nav"])
    for page in PAGES:
        assert str(page.relative_to(HOME / "docs")) in text, page
    front = (site / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', front)


BLOCK = re.compile(r"^ *```(?:sh|bash|)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The lines of a page that begin with kd, as words."""
    found = []
    for block in re.findall(
        r"^ *```(?:sh|bash|)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = re.sub(r"^\s*\$ ", "", line).strip()
            if re.match(r"kd -?-?[a-z]", line):
                words = shlex.split(line, comments=True)
                words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&")), len(words))]
                found.append([word for word in words[1:] if word != "..."])
    return found


LINES = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("page, line", LINES, ids=[f"{page.stem}-{i}" for i, (page, _) in enumerate(LINES)])
def test_every_command_is_one_that_kd_understands(page, line):
    command, words, names = typer.main.get_command(app), list(line), []
    while hasattr(command, "commands") and words and words[0] in command.commands:
        names.append(words[0])
        command = command.commands[words.pop(0)]
    assert names, line
    try:
        context = command.make_context(" ".join(names), words, resilient_parsing=False)
    except typer.Exit:  # --help and --version
        return
    kind = next((one for one in KINDS if one.command == " ".join(names)), None)
    if kind is None or context.params.get("config"):
        return
    known = flag_paths(iter_settings(kind))
    typed = {name: value for name, value in context.params.items() if name in known}
    if any("./" in str(one) and ":" in str(one) for one in typed.values()):
        return
    if kind.command == "compare" and any("/" in one or one in ("study", "table") for one in typed.get("losses") or ()):
        typed["losses"] = None
    load_config(kind, None, context.params.get("sets"), typed)


def test_every_format_of_rows_is_read(tmp_path):
    text = (HOME / "docs" / "data-formats.md").read_text(encoding="utf-8")
    examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 7
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(example, encoding="utf-8")
        json.loads(example)
        assert len(read_rows(str(path), DataConfig()).rows) == 1


def test_error_codes_have_a_cause_and_a_fix():
    text = (HOME / "docs" / "errors.md").read_text(encoding="utf-8")
    assert "### DATA-01" in text
    assert "### NUM-01" in text
    assert issubclass(KDError, Exception)
    for part in text.split("\n### ")[1:]:
        assert len([line for line in part.splitlines() if line.startswith("| ")]) >= 3, part[:80]


def test_the_container_is_built_from_the_lock_and_what_it_copies_is_there():
    text = (HOME / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    for name in copied:
        assert (HOME / name).exists(), name
    assert "--constraint src/kdcli/constraints.txt" in text
    assert (HOME / "src" / "kdcli" / "constraints.txt").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/compare.md"])
def test_tables_of_numbers_bear_titles_not_the_names_of_scores(page):
    lines = (HOME / page).read_text(encoding="utf-8").splitlines()
    cells = [
        cell.strip().replace("\\", "").strip("`") for line in lines if line.startswith("|") for cell in line.split("|")
    ]
    named = [cell for cell in cells if (word := cell.removesuffix(" ↑").removesuffix(" ↓").strip("` ")) != title(word)]
    assert named == []
