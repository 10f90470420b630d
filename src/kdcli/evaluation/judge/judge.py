"""``kd judge``: scores of a judge model, or given scores, as metrics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.config.schema import JudgeConfig
from kdcli.config.sections import EvalSettings
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.judge.inputs import JudgeInputs, load_answers
from kdcli.evaluation.judge.prompt import JudgePrompt, judge_prompt, read_pair
from kdcli.evaluation.judge.verdicts import NOTHING, Verdicts, read_judged, scores_of
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.evaluation.results import Rows, make_place, write_results
from kdcli.evaluation.scoring import answer_counts
from kdcli.events import Event, Report
from kdcli.remote.client import Client, Request
from kdcli.remote.replies import ReplyStore, kept_path
from kdcli.remote.schema import CompletionReply, read_chat
from kdcli.statistics import over_examples
from kdcli.storage import atomic
from kdcli.text import one_line
from kdcli.version import __version__

_ORDERS = 2


def judge(config: JudgeConfig, report: Report) -> EvalRecord:
    """Judge answers.

    Args:
        config: the answers, and who judges them.
        report: called with progress events.

    Returns:
        the record; its folder is ``output``, or None.

    Raises:
        UsageError: no answers, no judge, or both kinds of judge.
        InputError: answers or scores that cannot be used, or a judge whose replies hold no score.
        KDError: a server that fails.
    """
    if config.answers is None:
        raise UsageError("CLI-20", "no answers", where="kd judge", fix="give a run, an evaluation, or a JSONL file")
    if (config.scores is None) == (config.server.url is None):
        what = "no judge is named" if config.scores is None else "two judges are named"
        raise UsageError("JUDGE-04", what, where="kd judge", fix="give --scores FILE or --server-url URL")
    opinion = _imported(config) if config.scores is not None else _asked(config, report)
    return _record(config, opinion)


@dataclass(frozen=True)
class _Opinion:
    """Scores, what they are about, and everything that changes them."""

    about: JudgeInputs
    verdicts: Verdicts
    settings: dict[str, str]
    notes: tuple[str, ...] = ()


def _imported(config: JudgeConfig) -> _Opinion:
    path = Path(str(config.scores)).expanduser()
    about = load_answers(str(config.answers), references=False, limit=config.limit)
    found = read_judged(path, about.texts.prompts, len(about.texts.predictions[0]))
    missing = int((~found.judged.any(-1)).sum())
    notes = (f"{missing} of {len(about.where)} examples have no score and count for nothing",) if missing else ()
    return _Opinion(about, found, {"imported": atomic.digest_file(path)[:8]}, notes)


def _asked(config: JudgeConfig, report: Report) -> _Opinion:
    if config.output is None:
        what = "a judge's replies must be kept somewhere"
        raise UsageError("CLI-20", what, where="kd judge", fix="give -o FOLDER")
    prompt = judge_prompt(config.prompt_file)
    about = load_answers(str(config.answers), references=True, limit=config.limit)
    client = Client(config.server, ReplyStore(kept_path(Path(config.output))))
    model = client.model()
    pairs = _ask(client, [*_requests(config, model, prompt, about)], report)
    shape = (len(about.where), len(about.texts.predictions[0]), _ORDERS)
    scores = np.array([pair or (NOTHING, NOTHING) for pair in pairs], dtype=np.float64).reshape(*shape, 2)
    verdicts = Verdicts(
        np.stack([scores[:, :, 0, 0], scores[:, :, 1, 1]], -1), np.stack([scores[:, :, 0, 1], scores[:, :, 1, 0]], -1)
    )
    if not verdicts.judged.any():
        what = "no reply holds two scores from 1 to 10"
        replies = one_line(str(kept_path(Path(config.output))))
        fix = f"read {replies}; give --set max_tokens=1024, or another --set prompt_file=FILE"
        raise InputError("JUDGE-05", what, where=f"judge {one_line(model, 60)}", fix=fix)
    lost = int((~verdicts.judged).sum())
    notes = (f"{lost} of {verdicts.judged.size} answers left out: the judge's reply holds no scores",) if lost else ()
    settings = {
        "judge": one_line(model, 80), "temp": f"{config.temperature:g}", "orders": "both", "scale": "1-10",
        "template": prompt.digest, "max": str(config.max_tokens),
    }  # fmt: skip
    return _Opinion(about, verdicts, settings, notes)


def _requests(config: JudgeConfig, model: str, prompt: JudgePrompt, about: JudgeInputs) -> list[Request]:
    """Return the requests: for every example and answer, the answer first, then the reference first."""
    texts, found = about.texts, []
    for question, answers, valid in zip(texts.prompts, texts.predictions, texts.references, strict=True):
        for answer in answers:
            for first, second in ((answer, valid[0]), (valid[0], answer)):
                turn = {"role": "user", "content": prompt.fill(question, first, second)}
                body: dict[str, Any] = {"model": model, "messages": [turn], "temperature": config.temperature}
                found.append(Request("chat/completions", body | {"max_tokens": config.max_tokens, "stream": False}))
    return found


def _ask(client: Client, requests: list[Request], report: Report) -> list[tuple[float, float] | None]:
    """Return the two scores of every reply, None where it holds none; equal requests are asked once."""
    distinct = {str(request.body): request for request in requests}
    report(Event("stage", "judging", total=len(distinct)))
    found: dict[str, tuple[float, float] | None] = {}
    keys = [*distinct]
    replies = client.ask([*distinct.values()], read_chat)
    for done, (place, written) in enumerate(replies, start=1):
        found[keys[place]] = _read(written)
        report(Event("progress", "judging", done=done, total=len(distinct)))
    return [found[str(request.body)] for request in requests]


def _read(written: CompletionReply) -> tuple[float, float] | None:
    return read_pair(written.text)


def _record(config: JudgeConfig, opinion: _Opinion) -> EvalRecord:
    """Make the record of an opinion, and write it if there is a place for it."""
    about, scores = opinion.about, scores_of(opinion.verdicts)
    tail = [*(f"{key}:{value}" for key, value in opinion.settings.items()), f"data:{about.digest[:8]}"]
    signature = "|".join([*tail, f"n:{len(about.where)}", f"kd:{__version__}"])
    record = EvalRecord(
        name=about.name,
        model=str(config.answers),
        model_digest=about.digest,
        folder=Path(config.output) if config.output is not None else None,
        examples=len(about.where),
        estimates={score.name: over_examples(score) for score in scores},
        infos=tuple(ScoreInfo(one.name, one.better, "judge", f"judge|{signature}", "texts") for one in scores),
        protocol={"data": about.digest, "examples": len(about.where), "judge": opinion.settings},
        notes=opinion.notes,
        answers=answer_counts(about.texts, about.most),
    )
    if record.folder is not None:
        make_place(record.folder, config.output)
        write_results(record.folder, record, EvalSettings(metrics=()), Rows(about.where, about.texts), scores)
    return record
