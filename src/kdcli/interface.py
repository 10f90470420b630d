"""The Python interface: ``kdcli.distill``, ``compare``, ``evaluate`` and ``load_study``, which the commands call, too.

A call takes settings as keywords: by the names of the flags (``lr=1e-4``), as sections (``train=TrainConfig(...)``
or a dict), by dotted names (``settings={"train.clip": 0.5}``); or from a YAML file, or as one config object. Nothing
heavy is imported before a call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kdcli.config.names import ALIASES, nearest
from kdcli.config.presets import config_path
from kdcli.config.resolve import flag_paths, iter_settings, resolve, revalidated
from kdcli.config.schema import CommandConfig, CompareConfig, DistillConfig, EvalConfig
from kdcli.config.sections import Settings
from kdcli.errors import InputError, UsageError
from kdcli.events import Event, Report
from kdcli.registry.registry import LOSSES, METRICS, SOURCES
from kdcli.registry.spec import ObjectiveSpec, Term, parse_objective
from kdcli.text import html_cell, one_line

if TYPE_CHECKING:
    from pandas import DataFrame

    from kdcli.comparison.records import Comparison
    from kdcli.distill.records import RunRecord
    from kdcli.evaluation.records import EvalRecord
    from kdcli.statistics import Estimate

_Config = TypeVar("_Config", bound=CommandConfig)


def distill(
    config: DistillConfig | str | Path | None = None,
    /,
    *,
    report: Report | None = None,
    resume: bool = True,
    command: str = "",
    **settings: Any,
) -> "Run":
    """Train a student on a teacher, and evaluate it if held-out rows are given; as ``kd distill`` in one process.

    The same call again goes on where it stopped, and returns what is finished.

    Args:
        config: all settings as one object; or a YAML file, or the name of a preset, to start from.
        report: called with each event of the run; nothing is printed without it.
        resume: whether a folder that holds this run may be continued.
        command: what to type to go on after an interruption.
        settings: names of flags, such as ``teacher``, ``student``, ``data``, ``loss``, ``lr``, ``output``; or sections.

    Raises:
        KDError: of the kind that fits; a mistake in the settings is found before weights are read.

    Example:
        ``kdcli.distill(teacher="./T", student="./S", data="train.jsonl", loss="akl", output="runs/akl").model``
    """
    made = _configured(DistillConfig, config, settings)
    from kdcli.distill.run import distill as train

    return Run(train(made, report or _silent, resume=resume, command=command))


def compare(
    config: CompareConfig | str | Path | None = None, /, *, report: Report | None = None, **settings: Any
) -> "Study":
    """Train objectives on an equal budget, evaluate each student, and put them into one table; as ``kd compare``.

    The same call again trains only what is missing.

    Args:
        config: all settings as one object, or a YAML file to start from.
        report: called with each event.
        settings: names of flags, such as ``losses=["fkl", "akl"]``, ``seeds=[0, 1]``, ``output``; or sections.

    Raises:
        KDError: a mistake in the settings, found before weights are read, or every cell failed.
    """
    made = _configured(CompareConfig, config, settings)
    from kdcli.study.compare import compare as run

    return Study(run(made, report or _silent))


def evaluate(
    model: str | Path | EvalConfig | None = None, /, *, report: Report | None = None, **settings: Any
) -> "Evaluation":
    """Measure a run, a model folder, or answers made elsewhere, on held-out rows; as ``kd eval``.

    Args:
        model: run folder, model folder or hub id; or all settings as one object.
        report: called with each event.
        settings: names of flags, such as ``data``, ``teacher``, ``metric=["rougeL", "ece"]``; or sections.

    Raises:
        UsageError: nothing to measure, or a metric that needs what is not there.
        InputError: model or rows that cannot be used.
    """
    whole = model if isinstance(model, EvalConfig) else None
    named = {"model": model} if model is not None and whole is None else {}
    made = _configured(EvalConfig, whole, {**named, **settings})
    from kdcli.evaluation.evaluate import evaluate_run

    return Evaluation(evaluate_run(made, report or _silent))


def load_study(path: str | Path) -> "Study":
    """Return a finished comparison from its tables; nothing is trained or measured.

    Args:
        path: folder that ``kd compare`` wrote.

    Raises:
        InputError: it holds no comparison.
        IntegrityError: a table is not what it was.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError("RUN-03", "no such folder", where=one_line(str(folder)), fix="give the folder of a study")
    from kdcli.study.results import read_comparison

    return Study(read_comparison(folder))


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Args:
        record: everything that is recorded of it.
    """

    record: "RunRecord"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.record.folder

    @property
    def model(self) -> Path:
        """The folder of the trained student, which transformers loads."""
        return self.record.model

    @property
    def evaluation(self) -> "Evaluation | None":
        """The evaluation on held-out rows; None if none were given."""
        return Evaluation(self.record.evaluation) if self.record.evaluation is not None else None

    @property
    def scores(self) -> "DataFrame":
        """One line for each score of the evaluation, as in :attr:`Evaluation.scores`.

        Raises:
            UsageError: the run was not evaluated.
        """
        if self.evaluation is None:
            raise UsageError("CLI-20", "the run was not evaluated", fix="give eval_data, or call kdcli.evaluate on it")
        return self.evaluation.scores

    @cached_property
    def steps(self) -> "DataFrame":
        """One line for each optimizer step: loss, learning rate and what else was logged."""
        import pandas

        from kdcli.training.metrics_log import read_metrics

        return pandas.DataFrame(list(read_metrics(self.folder)))

    def _repr_html_(self) -> str:
        head = f"<p>{html_cell(self.record.loss)}, seed {self.record.seed}: {self.record.steps:,} steps</p>"
        return head + (self.evaluation._repr_html_() if self.evaluation is not None else "")


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model.

    Args:
        record: everything that is recorded of it.
    """

    record: "EvalRecord"

    @cached_property
    def scores(self) -> "DataFrame":
        """One line for each score: value, ends of its 95 % interval over examples, direction, how it was taken."""
        import pandas

        found = self.record.estimates
        lines = [
            {"score": info.name, **_ends(found[info.name]), "better": info.better, "how": info.settings}
            for info in self.record.infos
        ]
        return pandas.DataFrame(lines).set_index("score")

    def _repr_html_(self) -> str:
        return self.scores.drop(columns="how").to_html(float_format=lambda value: f"{value:.4g}")


@dataclass(frozen=True)
class Study:
    """A finished comparison.

    Args:
        comparison: everything that was computed.
    """

    comparison: "Comparison"

    @property
    def folder(self) -> Path | None:
        """Where its tables and its report lie."""
        return self.comparison.folder

    @cached_property
    def table(self) -> "DataFrame":
        """The means: one line for each objective and reference model, one column for each score."""
        import pandas

        rows = (*self.comparison.references, *self.comparison.rows)
        means = [{name: found.mean for name, found in row.scores.items()} for row in rows]
        return pandas.DataFrame(means, index=self.labels, columns=[info.name for info in self.comparison.scores])

    @property
    def labels(self) -> list[str]:
        """The lines in the order of the table: reference models first."""
        return [row.label for row in (*self.comparison.references, *self.comparison.rows)]

    @cached_property
    def scores(self) -> "DataFrame":
        """One line for each objective and score: its mean and the ends of its 95 % interval over seeds and examples."""
        rows = (*self.comparison.references, *self.comparison.rows)
        return _frame((row.label, name, _ends(found)) for row in rows for name, found in row.scores.items())

    @cached_property
    def differences(self) -> "DataFrame":
        """One line for each objective and score: paired difference to the baseline, 95 % interval, adjusted p."""
        return _frame(
            (row.label, name, {**_ends(found), "p": found.p_value})
            for row in self.comparison.rows
            for name, found in row.differences.items()
            if found is not None
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the table can and cannot say, one sentence each."""
        return self.comparison.notes

    def to(self, form: str) -> str:
        """Return the table as text.

        Args:
            form: md, tex, html, csv or json.
        """
        from kdcli.report.tables import FORMS, render

        if form not in FORMS:
            raise UsageError("CLI-21", f'"{one_line(form, 40)}" is no form', fix=f"choose one of {', '.join(FORMS)}")
        return render(self.comparison, form)

    def _repr_html_(self) -> str:
        return self.to("html")


def _frame(lines: Any) -> "DataFrame":
    import pandas

    found = [{"objective": label, "score": name, **values} for label, name, values in lines]
    return pandas.DataFrame(found, columns=list(found[0]) if found else ["objective", "score", "mean"]).set_index(
        ["objective", "score"]
    )


def _ends(found: "Estimate") -> dict[str, float | None]:
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _silent(event: Event) -> None:
    """Say nothing."""


# From keywords to a checked config.


def _configured(kind: type[_Config], config: object, settings: Mapping[str, Any]) -> _Config:
    """Return the config that a call means.

    Raises:
        UsageError: a name that is no setting, or a value that cannot be one.
        InputError: a file that cannot be used.
    """
    if isinstance(config, kind) and not settings:
        return checked(config)
    base = config if isinstance(config, kind) else None
    if base is None and config is not None and not isinstance(config, str | Path):
        what = f"got {type(config).__name__} for all settings"
        raise UsageError("CLI-20", what, fix=f"give a {kind.__name__}, a YAML file, or keywords")
    file = None if base is not None or config is None else _file(kind, config)
    known = flag_paths(iter_settings(kind))
    flags: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    dotted = dict(settings.get("settings") or {})
    for name, value in settings.items():
        flag = ALIASES.get(name, name)
        if name == "settings" or value is None:
            continue
        section = isinstance(value, Mapping) and name in kind.model_fields and flag not in known
        if section or isinstance(value, Settings):
            sections[name] = value
        elif flag in known:
            flags[flag] = _text(value)
        else:
            raise UsageError("CLI-19", f"{kind.command} has no setting {one_line(name, 60)}", fix=_nearest(name, known))
    sets = [f"{path}={_joined(value)}" for path, value in dotted.items()]
    if base is not None:
        flags = {**flags}
        found = resolve(kind, sets=sets, flags=flags)
        paths = {*(known[name] for name in flags), *dotted}
        whole = _merged(base.model_dump(), found.model_dump(), paths)
        return checked(kind.model_validate(_with_sections(whole, sections)))
    found = resolve(kind, file=file, sets=sets, flags=flags)
    return checked(kind.model_validate(_with_sections(found.model_dump(), sections)) if sections else found)


def _file(kind: type[CommandConfig], config: object) -> Path:
    named: Callable[[str], Path] = config_path if kind.has_presets else Path
    return named(str(config))


def _merged(base: dict[str, Any], found: dict[str, Any], paths: set[str]) -> dict[str, Any]:
    for path in paths:
        target, source = base, found
        *outer, last = path.split(".")
        for key in outer:
            target, source = target[key], source[key]
        target[last] = source[last]
    return base


def _with_sections(whole: dict[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value.model_dump(exclude_unset=True) if isinstance(value, Settings) else value
             for name, value in sections.items()}  # fmt: skip
    return {**whole, **{name: {**whole[name], **value} for name, value in given.items()}}


def _text(value: Any) -> str | list[str]:
    if isinstance(value, list | tuple):
        return [str(one) for one in value]
    return _joined(value)


def _joined(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nearest(name: str, known: Mapping[str, str]) -> str:
    near = nearest(name, {one: one for one in known} | {one: flag for one, flag in ALIASES.items() if flag in known})
    return f"did you mean {near}?" if near else "see docs/cli.md, or give settings={'train.clip': 0.5}"


def objective(text: str) -> str:
    """Return an objective with registered names in place of aliases.

    Raises:
        UsageError: it cannot be read, or a name does not exist.

    >>> objective("0.5*ce + kl")
    '0.5*ce+fkl'
    """
    spec = parse_objective(text)
    terms = tuple(Term(LOSSES.canonical(term.name), term.options, term.weight) for term in spec.terms)
    if spec.source:
        SOURCES.canonical(spec.source.name)
    return str(ObjectiveSpec(terms, spec.source))


def checked(config: _Config) -> _Config:
    """Return the config with registered names, so that two spellings of one objective are equal."""
    changes: dict[str, Any] = {}
    for name in config.objectives:
        given = getattr(config, name)
        if given is not None:
            changes[name] = objective(given) if isinstance(given, str) else tuple(map(objective, given))
    evaluation, hardware = getattr(config, "evaluation", None), getattr(config, "hardware", None)
    for name, section in (("evaluation.metrics", evaluation), ("monitor.metrics", getattr(config, "monitor", None))):
        if section is not None and not section.metrics:
            where = "--metric" if name == "evaluation.metrics" else name
            raise UsageError("CLI-20", "no metric is named", where=where, fix="name some of: kd metrics list")
    if evaluation is not None:
        names = tuple(METRICS.canonical(name) for name in evaluation.metrics)
        changes["evaluation"] = evaluation.model_copy(update={"metrics": names})
    if hardware is not None and (hardware.device, hardware.dtype) == ("cpu", "fp16"):
        raise UsageError("CLI-16", "fp16 is not supported on a CPU", where="--dtype fp16", fix="use fp32 or bf16")
    train = getattr(config, "train", None)
    if train is not None and train.max_steps is not None and train.warmup > max(train.max_steps, 1):
        what = f"warm-up of {train.warmup:g} steps is longer than the run of {train.max_steps}"
        raise UsageError("CFG-13", what, where="train.warmup", fix="give a share below 1, or fewer steps")
    return revalidated(config, changes)
