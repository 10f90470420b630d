"""``kd data rationales``: the words of a prompt that moved a teacher's answer, as a short reason for the student."""

import hashlib
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.config.schema import RationalesConfig
from kdcli.data.rows import Row, RowReport, read_rows
from kdcli.data.tokenize import Example, TokenDataset, encode_one
from kdcli.errors import InputError, NumericsError, UsageError
from kdcli.events import Event, Report
from kdcli.loading.info import ModelInfo, require_single
from kdcli.loading.session import Session, check_data_path
from kdcli.models.devices import prepare
from kdcli.models.load import LanguageModel
from kdcli.registry.build import build_term, single
from kdcli.registry.spec import parse_objective
from kdcli.remote.address import is_url
from kdcli.rows.files import ROWS, Working, check_same, columns_of, write_rows
from kdcli.scores.saliency import ATTRIBUTIONS, Attribution, WordsOfPrompt
from kdcli.signals import StopRequest
from kdcli.storage import atomic, lock
from kdcli.storage.jsonl import JsonlStore
from kdcli.text import one_line
from kdcli.version import __version__

_WORD = re.compile(r"\w+(?:['’\-]\w+)*")
_SECONDS_BETWEEN_FLUSHES = 2.0
_GAP = 0.05


@dataclass(frozen=True)
class RationalesRecord:
    """Rows with rationales.

    Args:
        file: the rows, as JSON lines.
        rows: how many it has.
        asked: rows of which words were weighed.
        fresh: those that this call weighed.
        wordless: rows without a word to choose.
        hit_rate: share of the rows in which a chosen word occurs in the answer.
        chance: the share that as many words of the same prompts, drawn at random, would give.
        gap: median miss of completeness, as a share; None where no integrated gradients were taken.
    """

    file: Path
    rows: int
    asked: int
    fresh: int
    wordless: int
    hit_rate: float
    chance: float
    gap: float | None


def build_attribution(text: str) -> Attribution:
    """Build the way to weigh words that a spec string names.

    Raises:
        UsageError: no such way, or options that it does not have.

    >>> build_attribution("ig:steps=64").steps
    64
    """
    term = single(parse_objective(text))
    if term is None or term.name not in ATTRIBUTIONS:
        what = f'"{one_line(text, 60)}" is no way to weigh words'
        raise UsageError("CLI-06", what, where="--by", fix=f"give one of {', '.join(ATTRIBUTIONS)}")
    return build_term(ATTRIBUTIONS[term.name], term)


def chance_of_a_hit(words: int, hits: int, drawn: int) -> float:
    """Return the probability that of some words drawn without replacement at least one is among the hits.

    ``1 - C(n - h, k) / C(n, k)``.

    Args:
        words: n, how many there are.
        hits: h, how many of them count.
        drawn: k; all, if there are fewer.

    >>> chance_of_a_hit(4, 1, 2), chance_of_a_hit(3, 0, 2), chance_of_a_hit(2, 1, 5)
    (0.5, 0.0, 1.0)
    """
    drawn = min(drawn, words)
    return 1.0 - math.comb(words - hits, drawn) / math.comb(words, drawn) if words else 0.0


def rationales(
    config: RationalesConfig, report: Report, *, command: str = "", session: Session | None = None
) -> RationalesRecord:
    """Weigh the words of prompts that are not weighed yet, and write rows with the heaviest of each.

    Args:
        config: teacher, rows, how words are weighed, how many are given, and where they go.
        report: called with progress events.
        command: what to type to go on after an interruption.
        session: what is loaded already.

    Raises:
        KDError: of the kind that fits.
        InterruptedRunError: stopped by a signal; every row that was weighed is kept.
    """
    session = session or Session()
    way, path, info = _checked(config, session)
    device = prepare(config.hardware)
    read = read_rows(path, config.data, limit=config.data.limit)
    rows = session.data(path, info, config.data, role="train")
    for note in (*info.notes, *rows.notes):
        report(Event("note", note))
    table = {row.where: row for row in read.rows}
    if any(row.form == "text" for row in read.rows):
        what = "plain texts have no prompt whose words could be weighed"
        raise InputError("ROWS-08", what, where=path, fix="give rows with prompts")
    folder = Path(str(config.output))
    atomic.make_folder(folder)
    with lock.hold(folder), StopRequest() as stop:
        atomic.remove_temporaries(folder)
        made_of = {"rows": rows.digest, "files": rows.files, "teacher": info.digest}
        check_same(folder, made_of, "the folder holds rationales of other rows, or of another teacher")
        found = [_words(one, table[one.where], info) for one in rows.examples]
        frequency = Counter(word for one in found for word in {text.lower() for text in one.words})
        known, fresh = _weighed(config, way, info, session, device.device, found, frequency, folder,
                                Working(report, stop, command))  # fmt: skip
        chosen = [_heaviest(one, known[one.key]["weights"], config.words) for one in found]
        columns = columns_of(path, config.data)
        lines = list(_rows(config, read, rows, table, columns, found, chosen, known))
        hits, chances = _hits(rows, table, found, chosen, config.words)
        gaps = [entry["gap"] for entry in known.values() if entry.get("gap") is not None]
        gap = statistics.median(gaps) if gaps else None
        if gap is not None and gap > _GAP:
            said = f"integrated gradients miss completeness by {100 * gap:.0f} % in the median row"
            said = f"{said}; give more steps, as in ig:steps=64, or baseline=mean"
            report(Event("warning", said))
        if config.into == "input" and config.hint_dropout == 0.0:
            said = "rationales stand in every prompt, so that a teacher is needed at test time; give --hint-dropout 0.5"
            report(Event("warning", said))
        about = {
            "kind": "rationales", "kd": __version__, "data": path, "teacher": info.path, "made_of": made_of,
            "by": config.by, "words": config.words, "into": config.into, "rows": len(lines),
            "hit_rate": hits, "chance": chances, "gap": gap,
        }  # fmt: skip
        write_rows(folder, {ROWS: lines}, about)
    wordless = sum(not one.words for one in found)
    return RationalesRecord(folder / ROWS, len(lines), len(found), fresh, wordless, hits, chances, gap)


def _checked(config: RationalesConfig, session: Session) -> tuple[Attribution, str, ModelInfo]:
    way, path = build_attribution(config.by), check_data_path(config.data.train, "--data")
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="give one, such as -o rationales")
    if config.teacher is None:
        raise UsageError("CLI-20", "no teacher", where="--teacher", fix="give a folder or a hub id")
    require_single(config.teacher, "one teacher is asked", "--teacher", "give one of them")
    if is_url(config.teacher):
        what, fix = "a server gives no gradients", "give the folder of the model that it serves"
        raise UsageError("SERVE-11", what, where="--teacher", fix=fix)
    return way, path, session.inspect(config.teacher)


def _words(example: Example, row: Row, info: ModelInfo) -> WordsOfPrompt:
    """Return the words of a row's own content, and the tokens of each, by the characters they stand for."""
    ids, spans = encode_one(info.tokenizer, example.prompt + example.response)
    if spans is None:
        what = "the tokenizer does not tell which characters a token stands for"
        raise InputError("TOK-14", what, where=example.where, fix="use a tokenizer with a tokenizer.json")
    size = example.prompt_length
    before = next((k for k in range(size + 1) if example.ids[k:size] == ids[: size - k]), size)
    places = {at + before: span for at, span in enumerate(spans) if at + before < size}
    words, tokens = [], []
    for start, end, text in _content_words(example.prompt, row):
        mine = [at for at, (first, last) in places.items() if first < end and last > start]
        if mine:
            words.append(text)
            tokens.append(mine)
    answer = info.ends.body(example.ids[size:])
    key = hashlib.sha256(json.dumps([size, example.ids]).encode()).hexdigest()[:24]
    return WordsOfPrompt(words if answer else [], tokens, example.ids[:size], answer, key)


def _content_words(prompt: str, row: Row) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and text of each word of the row's own content, which a template stands around."""
    pieces = [str(one.get("content") or "") for one in row.messages if one.get("role") == "user"]
    after = 0
    for piece in pieces if row.messages else [row.prompt, row.context]:
        at = prompt.find(piece.strip(), after) if piece.strip() else -1
        if at >= 0:
            after = at + len(piece.strip())
            yield from ((at + one.start(), at + one.end(), one[0]) for one in _WORD.finditer(piece.strip()))


def _weighed(
    config: RationalesConfig, way: Attribution, info: ModelInfo, session: Session, device: Any,
    rows: Sequence[WordsOfPrompt], frequency: Mapping[str, int], folder: Path, working: Working,
) -> tuple[dict[str, dict[str, Any]], int]:  # fmt: skip
    """Return of each row, by key, the weights of its words; each goes to disk when it is known."""
    counts = json.dumps(sorted(frequency.items())) if way.name == "rare" else ""
    named = json.dumps([way.name, way.model_dump(mode="json"), info.digest, info.tokenizer_digest, counts])
    path = folder / f"{way.name}-{hashlib.sha256(named.encode()).hexdigest()[:16]}.jsonl"
    wanted = {one.key: one for one in rows}
    model: LanguageModel | None = None
    with closing(JsonlStore(path, seconds=_SECONDS_BETWEEN_FLUSHES)) as store:
        known = {key: entry for key in wanted if (entry := store.find(key)) is not None}
        missing = [key for key in wanted if key not in known]
        if missing:
            working.begin("weighing words", len(known), len(wanted))
        for key in missing:
            one = wanted[key]
            if way.reads_model and model is None:
                model = session.load_teacher(info.path, device)
                model.check_length(max(len(row.prompt) + len(row.answer) for row in rows))
            one.model, one.frequency = model, frequency
            weights = way.measure(one) if one.words else []
            if not all(map(math.isfinite, weights)):
                what, fix = f"{way.name} of a word is not finite", "look at the teacher's weights"
                raise NumericsError("ROWS-02", what, where=f"row {key}", fix=fix)
            known[key] = {"key": key, "weights": weights, "gap": one.gap}
            store.add(known[key])
            working.step("weighing words")
    return known, len(missing)


def _heaviest(row: WordsOfPrompt, weights: Sequence[float], count: int) -> list[str]:
    """Return the words of the highest weight, in text order, each once whatever its case."""
    best: dict[str, int] = {}
    for place in sorted(range(len(row.words)), key=lambda place: (-weights[place], place)):
        best.setdefault(row.words[place].lower(), place)
    return [row.words[place] for place in sorted([*best.values()][:count])]


def _rows(
    config: RationalesConfig, read: RowReport, rows: TokenDataset, table: Mapping[str, Row],
    columns: Mapping[str, dict[str, Any]], found: Sequence[WordsOfPrompt], chosen: Sequence[Sequence[str]],
    known: Mapping[str, Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    for example, one, words in zip(rows.examples, found, chosen, strict=True):
        row, fields, text = table[example.where], columns[example.where], ", ".join(words)
        weights = dict(zip(one.words, known[one.key]["weights"], strict=True))
        made = {"by": config.by, "words": words, "weights": weights}
        write = _Writer(row, fields, read.columns)
        if config.into == "tasks":
            yield {**write.asked(before="[label] "), "made": {**made, "task": "label"}}
            if words:
                both = {**write.asked(before="[rationale] "), **write.answered(lambda _, text=text: text)}
                yield {**both, **_other_id(fields), "made": {**made, "task": "rationale"}}
        elif config.into == "target":
            yield {**fields, **write.answered(lambda said, text=text: f"{text} => {said.strip()}"), "made": made}
        else:
            kept = bool(words) and _uniform(config.seed, one.key) >= config.hint_dropout
            asked = write.asked(behind=f" Important: {text}") if kept else fields
            yield {**asked, "made": {**made, "hint": kept}}


def _other_id(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": f"{fields['id']}#rationale"} if "id" in fields else {}


def _uniform(seed: int, key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"hint {seed} {key}".encode()).digest()[:8], "big") / 2**64


class _Writer:
    """Writes a row's columns with another prompt or another answer.

    Args:
        row: the row.
        fields: its columns.
        columns: field -> column.
    """

    def __init__(self, row: Row, fields: dict[str, Any], columns: Mapping[str, str]) -> None:
        self._row, self._fields, self._columns = row, fields, columns

    def asked(self, before: str = "", behind: str = "") -> dict[str, Any]:
        """Return the columns with something before and behind what the user asks."""
        if self._row.form == "messages":
            users = [at for at, one in enumerate(self._row.messages) if one.get("role") == "user"]
            turns = [dict(one) for one in (*self._row.messages, *([self._row.turn] if self._row.turn else []))]
            for at in users[-1:]:
                turns[at]["content"] = f"{before}{turns[at].get('content') or ''}{behind}"
            return {**self._fields, self._columns["messages"]: turns}
        first = self._columns["prompt" if self._row.form == "prompt" else "instruction"]
        last = self._columns.get("input", first) if self._row.context else first
        changed = {**self._fields, first: f"{before}{self._fields[first]}"}
        return {**changed, last: f"{changed[last]}{behind}"}

    def answered(self, change: Any) -> dict[str, Any]:
        """Return the columns of the answer, changed; of several answers the first."""
        said = change(self._row.responses[0])
        if self._row.form != "messages":
            return {self._columns["response"]: said}
        turns = [*map(dict, self._row.messages), {**(self._row.turn or {}), "content": said}]
        return {self._columns["messages"]: turns}


def _hits(
    rows: TokenDataset, table: Mapping[str, Row], found: Sequence[WordsOfPrompt], chosen: Sequence[Sequence[str]],
    count: int,
) -> tuple[float, float]:  # fmt: skip
    """Return the share of rows in which a chosen word occurs in the answer, and what chance would give."""
    hits, chances = [], []
    for example, one, words in zip(rows.examples, found, chosen, strict=True):
        answer = {word.lower() for said in table[example.where].responses for word in _WORD.findall(said)}
        there = {word.lower() for word in one.words}
        hits.append(any(word.lower() in answer for word in words))
        chances.append(chance_of_a_hit(len(there), len(there & answer), count))
    return sum(hits) / len(hits), math.fsum(chances) / len(chances)
