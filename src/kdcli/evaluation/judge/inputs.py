"""Loads the answers to judge: of an evaluation, a run, or a file."""

from dataclasses import dataclass, replace
from pathlib import Path

from kdcli.errors import InputError, UsageError
from kdcli.evaluation.answers import TextSamples
from kdcli.evaluation.predictions import read_predictions
from kdcli.evaluation.results import RESULTS, SAMPLES, read_results, read_samples
from kdcli.storage import atomic
from kdcli.storage.run_dir import EVAL
from kdcli.text import one_line


@dataclass(frozen=True)
class JudgeInputs:
    """Answers with what they answer.

    Args:
        name: of the test set.
        digest: sha256 of what the answers were read from.
        texts: prompts, references and answers.
        where: file and line of each example.
        most: tokens that answers were cut at, as far as that is known.
    """

    name: str
    digest: str
    texts: TextSamples
    where: list[str]
    most: int | None = None


def load_answers(path: str, *, references: bool, limit: int | None = None) -> JudgeInputs:
    """Return the answers at a path.

    Args:
        path: evaluation folder, run folder with one evaluation, or JSONL.
        references: whether every example must have a reference and a prompt.
        limit: use the first so many examples.

    Raises:
        InputError: JUDGE-03, nothing there to judge.
        UsageError: JUDGE-03, a run with several evaluations.
        IntegrityError: the evaluation is not what its manifest says.
    """
    place = Path(path).expanduser()
    found = _from_folder(_evaluation(place)) if place.is_dir() else _from_file(place, references)
    if limit is not None and limit < len(found.where):
        texts = found.texts
        first = replace(
            texts, prompts=texts.prompts[:limit], references=texts.references[:limit],
            predictions=texts.predictions[:limit], ended=texts.ended[:limit],
        )  # fmt: skip
        found = replace(found, texts=first, where=found.where[:limit])
    _check(found, path, references)
    return found


def _evaluation(folder: Path) -> Path:
    if (folder / RESULTS).is_file():
        return folder
    found = sorted(path.parent for path in (folder / EVAL).glob(f"*/{RESULTS}"))
    shown = one_line(str(folder))
    if not found:
        fix = "make answers first: kd eval MODEL --data FILE --metric rougeL -o FOLDER"
        raise InputError("JUDGE-03", f"no evaluation (looked for {RESULTS})", where=shown, fix=fix)
    if len(found) > 1:
        names = ", ".join(one_line(path.name, 30) for path in found[:5])
        what = f"the run has {len(found)} evaluations ({names})"
        raise UsageError("JUDGE-03", what, where=shown, fix=f"give one, such as {one_line(str(found[0]))}")
    return found[0]


def _from_folder(folder: Path) -> JudgeInputs:
    record = read_results(folder)
    table = read_samples(folder)
    if "predictions" not in table.column_names:
        fix = "evaluate with a metric of texts, such as --metric rougeL"
        raise InputError("JUDGE-03", "the evaluation holds no answers", where=one_line(str(folder)), fix=fix)
    prompts, references, predictions = (table[name].to_pylist() for name in ("prompt", "references", "predictions"))
    known = "ended" in table.column_names
    ended = table["ended"].to_pylist() if known else [[True] * len(answers) for answers in predictions]
    texts = TextSamples(predictions, references, prompts, ended, ended_is_known=known)
    most = record.answers.most if record.answers is not None else None
    return JudgeInputs(record.name, atomic.digest_file(folder / SAMPLES), texts, table["where"].to_pylist(), most)


def _from_file(path: Path, references: bool) -> JudgeInputs:
    texts, where = read_predictions(path, need_references=references)
    return JudgeInputs(path.name.split(".")[0] or "answers", atomic.digest_file(path), texts, where)


def _check(found: JudgeInputs, path: str, references: bool) -> None:
    """Refuse what no judge can compare."""
    if all(not answer.strip() for answers in found.texts.predictions for answer in answers):
        raise InputError("JUDGE-03", "every answer is empty", where=one_line(path), fix="look at the model's answers")
    if not references:
        return
    for place, prompt, valid in zip(found.where, found.texts.prompts, found.texts.references, strict=True):
        if not prompt.strip():
            raise InputError("JUDGE-03", "the prompt is missing or empty", where=place, fix='give it as "prompt"')
        if not valid or not valid[0].strip():
            raise InputError("JUDGE-03", "the reference is missing or empty", where=place, fix="leave the row out")
