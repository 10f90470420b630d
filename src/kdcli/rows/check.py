"""``kd data check``: what is in a file of rows, and what a model would make of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdcli.config.schema import CheckConfig
from kdcli.config.sections import DataConfig
from kdcli.data.columns import infer_schema
from kdcli.data.files import inspect_path
from kdcli.data.readers import Record
from kdcli.data.rows import Row, RowReport, raw_records, read_rows
from kdcli.errors import InputError, UsageError
from kdcli.text import one_line

if TYPE_CHECKING:
    from kdcli.end_tokens import EndTokens

_SHOWN_BAD = 20
_FEW_VALUES = 20
_START = 400


@dataclass(frozen=True)
class Lengths:
    """How long texts are: the shortest, quantiles by nearest rank, and the longest.

    Args:
        least: the shortest.
        median: half are at most as long.
        most_of_all: 95 of 100 are at most as long.
        most: the longest.
        mean: the mean.
    """

    least: int
    median: int
    most_of_all: int
    most: int
    mean: float

    @classmethod
    def of(cls, sizes: Iterable[int]) -> "Lengths":
        """Measure at least one length.

        >>> Lengths.of([3, 1, 2]).median
        2
        """
        ordered = sorted(sizes)
        last = len(ordered) - 1
        return cls(
            ordered[0], ordered[last // 2], ordered[-(-last * 95 // 100)], ordered[-1], sum(ordered) / len(ordered)
        )


@dataclass(frozen=True)
class TokensFound:
    """What a model makes of the rows.

    Args:
        model: as typed.
        rows: that a training would read.
        longest: tokens of prompt and response that a row may have.
        prompt: tokens of the prompts.
        response: tokens of the responses, their end token included.
        cut: rows whose response is cut, and has no end token.
        dropped: rows of which nothing is left: the prompt alone fills the length.
        needed: the least length at which no row would be cut.
        ends: the tokens that end a text, as text and id; the first is written behind a response that names none.
        template: what rows are put into.
        start: the first tokens of the first row, as the model reads them, special tokens spelt out.
        end: its last ones.
        notes: what to know, a sentence each.
    """

    model: str
    rows: int
    longest: int
    prompt: Lengths
    response: Lengths
    cut: int
    dropped: int
    needed: int
    ends: tuple[tuple[str, int], ...]
    template: str
    start: str
    end: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What is in a file of rows.

    Args:
        path: as typed.
        form: what its rows are: conversation, instruction, prompt or text.
        rows: good ones.
        bad: what is wrong with each bad one, file and line in front; at most 20.
        bad_rows: how many there are.
        used: columns that rows are made of, by field.
        unused: the other columns -> the values of those that have few, with their counts.
        prompt: characters of the prompts; None where rows have none.
        response: characters of the responses; None where no row has an answer.
        unanswered: whether rows have prompts and no answers, as for ``kd generate``.
        same_prompt: rows whose prompt, or text, an earlier row has.
        same_row: rows of which prompt and response are an earlier row's.
        references: rows with several responses, of which training takes the first.
        control: rows with control characters.
        tokens: what a model makes of them; None where none was named.
    """

    path: str
    form: str
    rows: int
    bad: tuple[str, ...]
    bad_rows: int
    used: Mapping[str, str]
    unused: Mapping[str, Mapping[str, int]]
    prompt: Lengths | None
    response: Lengths | None
    unanswered: bool
    same_prompt: int
    same_row: int
    references: int
    control: int
    tokens: TokensFound | None = None


def check(config: CheckConfig) -> Checked:
    """Read a file of rows and say what is in it; nothing is written, and no weight is read.

    Args:
        config: the file, how it is to be read, and the model that would read it.

    Raises:
        UsageError: no file.
        InputError: it cannot be used at all, or the model folder cannot.
        MachineError: not permitted.
    """
    path = config.data.train
    if path is None:
        raise UsageError("CLI-20", "no file is given", where="kd data check", fix="as in kd data check train.jsonl")
    inspect_path(path)
    patient = config.data.model_copy(update={"skip_bad": True})
    read, answered = _read(path, patient)
    report = _counted(path, patient, read, answered)
    if config.student is None:
        return report
    return replace(report, tokens=_tokens(config.student, path, patient, read, answered))


def _read(path: str, config: DataConfig) -> tuple[RowReport, bool]:
    """Read rows with answers; without, where no column holds any."""
    columns = raw_records(path, config)
    names = columns.columns
    if names is None:
        first = next((one for one in columns.records if isinstance(one, Record)), None)
        names = tuple(first.fields) if first is not None else ()
    answered = _has_answers(names, config)
    return read_rows(path, config, limit=config.limit, answered=answered), answered


def _has_answers(names: Sequence[str], config: DataConfig) -> bool:
    try:
        infer_schema(names, config.columns, "")
    except InputError:
        try:
            infer_schema(names, config.columns, "", answered=False)
        except InputError:
            return True
        return False
    return True


def _counted(path: str, config: DataConfig, read: RowReport, answered: bool) -> Checked:
    rows = read.rows
    prompts = [_prompt(row) for row in rows]
    whole = [(prompt, row.responses) for prompt, row in zip(prompts, rows, strict=True)]
    apart = {" ".join((prompt or responses[0]).split()) for prompt, responses in whole}
    asked = [prompt for prompt in prompts if prompt]
    return Checked(
        path=path,
        form=_form(rows),
        rows=len(rows),
        bad=read.bad[:_SHOWN_BAD],
        bad_rows=len(read.bad),
        used=dict(read.columns),
        unused=_others(path, config, set(read.columns.values()), len(rows)),
        prompt=Lengths.of(map(len, asked)) if asked else None,
        response=Lengths.of(len(row.responses[0]) for row in rows) if answered else None,
        unanswered=not answered,
        same_prompt=len(rows) - len(apart),
        same_row=len(rows) - len(set(whole)) if answered else 0,
        references=sum(len(row.responses) > 1 for row in rows),
        control=sum(row.has_control_characters for row in rows),
    )


def _form(rows: Sequence[Row]) -> str:
    return {"messages": "conversation"}.get(rows[0].form, rows[0].form)


def _prompt(row: Row) -> str:
    return f"{row.prompt}\n{row.context}" if row.context else row.prompt


def _others(path: str, config: DataConfig, used: set[str], rows: int) -> dict[str, dict[str, int]]:
    """Return the columns that no row is made of, and how often each value of one with few occurs."""
    found: dict[str, Counter[str]] = {}
    many: set[str] = set()
    for record in raw_records(path, config).records:
        for name, value in record.fields.items() if isinstance(record, Record) else ():
            if name in used:
                continue
            counts = found.setdefault(name, Counter())
            if name in many:
                continue
            if isinstance(value, str | int | bool) and len(str(value)) <= 60:
                counts[str(value)] += 1
            else:
                many.add(name)
            if len(counts) > _FEW_VALUES:
                many.add(name)
    telling = {name for name, counts in found.items() if name not in many and 2 * len(counts) <= rows}
    return {name: dict(counts.most_common()) if name in telling else {} for name, counts in found.items()}


def _tokens(model: str, path: str, config: DataConfig, read: RowReport, answered: bool) -> TokensFound:
    """Read the rows as a training would, with a model's tokenizer, template and end tokens."""
    from kdcli.data.dataset import load_dataset
    from kdcli.data.templates import choose_template
    from kdcli.data.tokenize import decode
    from kdcli.loading.session import Session

    info = Session().inspect(model)
    role = "train" if answered else "prompts"
    whole = config.model_copy(update={"max_length": 2**31 - 1, "max_prompt_length": None})
    long = load_dataset(path, info.tokenizer, whole, ends=info.ends, limit=config.limit, role=role)
    sizes = [max(len(one.ids), len(one.question) + 1) for one in long.examples]
    fitting = [one for one in long.examples if max(one.prompt_length, len(one.question)) < config.max_length]
    first, chosen = long.examples[0], choose_template(read.rows[0], config.template, info.tokenizer)
    return TokensFound(
        model=model,
        rows=len(fitting),
        longest=config.max_length,
        prompt=Lengths.of(one.prompt_length for one in long.examples),
        response=Lengths.of(len(one.ids) - one.prompt_length for one in long.examples),
        cut=sum(len(one.ids) > config.max_length for one in fitting),
        dropped=len(long) - len(fitting),
        needed=max(sizes),
        ends=_named(info.ends, info.tokenizer),
        template=chosen if "{" not in chosen else "custom text",
        start=decode(info.tokenizer, first.ids)[:_START],
        end=decode(info.tokenizer, first.ids[-12:]),
        notes=(*info.notes, *long.notes[len(read.notes) + 1 :]),  # after those on the file, and the template's
    )


def _named(ends: "EndTokens", tokenizer: Any) -> tuple[tuple[str, int], ...]:
    return tuple((one_line(str(tokenizer.convert_ids_to_tokens(token)), 40), token) for token in ends.ids)
