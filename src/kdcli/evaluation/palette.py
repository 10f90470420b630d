"""``kd eval --palette``: quality, parameters and speed of the sizes of a supernet."""

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kdcli.config.schema import EvalConfig
from kdcli.config.sections import EvalSettings
from kdcli.evaluation import scoring
from kdcli.evaluation.edge import Speed, measure_speed
from kdcli.evaluation.prepare import Subject, prepare_evaluation
from kdcli.evaluation.run_access import exclusive
from kdcli.events import Event, Report, silent
from kdcli.loading.session import Session
from kdcli.models.devices import Device
from kdcli.models.family_layout import form_of
from kdcli.models.load import LanguageModel, assemble, cast_copy, load_model
from kdcli.plots import COLOURS, log_heights, panels, plot_style, save
from kdcli.statistics import over_examples, pareto_front
from kdcli.storage import atomic
from kdcli.storage.locate import model_of
from kdcli.storage.run_dir import RunFolder
from kdcli.students.cut import slice_model
from kdcli.students.palette import Palette, Size, count_sizes, palette_of

NAME = "palette"
COSTS = {"parameters": "parameters", "seconds_per_token": "seconds per token"}
"""What a size costs, and how a picture calls it."""

_TALL = 20
"""From what ratio of perplexities on a logarithmic axis shows them better; shorter ones have no numbers on it."""


@dataclass(frozen=True)
class MeasuredSize:
    """One size of a supernet, measured.

    Args:
        width: share of heads, feed-forward units and hidden dimensions.
        depth: share of the layers.
        parameters: how many it has.
        perplexity: over the response tokens of the rows.
        low: lower end of its 95 % interval over rows; None where it is unknown.
        high: upper end.
        first_token_seconds: median time from prompt to first token.
        seconds_per_token: median time of each further token.
        unbeaten: costs at which no other size is as good and cheaper.
    """

    width: float
    depth: float
    parameters: int
    perplexity: float
    low: float | None
    high: float | None
    first_token_seconds: float
    seconds_per_token: float
    unbeaten: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaletteRecord:
    """The sizes of a supernet, measured on the same rows and machine.

    Args:
        model: what was measured.
        name: of the rows.
        examples: how many there are.
        sizes: the smallest first.
        prompt_tokens: of the prompt whose answer was timed.
        new_tokens: of that answer.
        repeats: measurements behind the medians.
        hardware: device, type and threads.
        folder: where the record and its picture lie; None where nothing was written.
    """

    model: str
    name: str
    examples: int
    sizes: tuple[MeasuredSize, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    hardware: str
    folder: Path | None = None


def evaluate_palette(config: EvalConfig, report: Report = silent) -> PaletteRecord:
    """Measure some sizes of a supernet, each as a model of its own.

    Args:
        config: the supernet, the rows, how speed is measured, and how many sizes (``palette``).
        report: called with progress events.

    Returns:
        the record, written as ``palette.json`` with a picture to ``output``, or to ``palette`` of a run folder.

    Raises:
        InputError: the model is no supernet, or rows or models cannot be used.
        UsageError: no rows.
    """
    assert config.model is not None, "kd eval asked for it"
    assert config.palette is not None, "kd eval asked for it"
    session, where = Session(), config.model
    facts = session.inspect(where)
    subject = Subject(facts, facts, lambda device: load_model(model_of(where), device=device.device, role="teacher"))
    measured_by = config.model_copy(update={"evaluation": EvalSettings(metrics=("perplexity",))})
    asked = prepare_evaluation(measured_by, where, session, subject)
    whole = subject.load(asked.device)
    palette = palette_of(whole.model.config, where)
    counted = count_sizes(palette, whole.model.config, where)
    chosen = spread(counted, config.palette)
    for note in asked.data.notes:
        report(Event("note", note))
    measured, hardware = [], ""
    for place, size in enumerate(chosen):
        report(Event("progress", "measuring sizes", done=place, total=len(chosen)))
        one = _slice(whole, palette, size, asked.device)
        scored = scoring.score_tokens(asked.chosen, one, None, asked.data, asked.device, silent)
        score = next(score for score, _ in scored.pairs if score.name == "perplexity")
        found, speed = over_examples(score), _speed(one, config, asked.device)
        hardware = speed.hardware
        measured.append(_row(size, counted[size], (found.mean, found.low, found.high), speed))
    report(Event("progress", "measuring sizes", done=len(chosen), total=len(chosen)))
    measured_on = (config.edge.prompt_tokens, config.edge.new_tokens, config.edge.repeats)
    record = PaletteRecord(where, asked.name, len(asked.data), _marked(measured), *measured_on, hardware)
    folder = _folder(config, where)
    return record if folder is None else _write(record, folder, config)


def spread(counted: dict[Size, int], most: int) -> list[Size]:
    """Return some sizes in the order of their parameters: the smallest, the largest, and others evenly between.

    Args:
        counted: size -> its parameters.
        most: how many at most.

    >>> sizes = {Size(width / 8, 1.0): width for width in range(1, 9)}
    >>> [one.width * 8 for one in spread(sizes, 3)]
    [1.0, 4.0, 8.0]
    """
    ordered = sorted(counted, key=lambda size: (counted[size], size))
    if most >= len(ordered):
        return ordered
    places = [0] if most == 1 else [round(place * (len(ordered) - 1) / (most - 1) - 0.01) for place in range(most)]
    return [ordered[max(place, 0)] for place in places[:-1]] + [ordered[-1]]


def _slice(whole: LanguageModel, palette: Palette, size: Size, device: Device) -> LanguageModel:
    made = slice_model(whole.model, palette.kept(size, form_of(whole.model.config, whole.path)))
    return assemble(
        made, whole.tokenizer, f"{whole.path} at {size}", whole.digest, device=device.device, role="teacher",
        ends=whole.ends,
    )  # fmt: skip


def _speed(model: LanguageModel, config: EvalConfig, device: Device) -> Speed:
    """Measure a model's speed with weights of the type that is computed in, as ``--edge`` does."""
    held = next(model.model.parameters()).dtype
    return measure_speed(
        model if held == device.compute else cast_copy(model, device.compute), config.edge, device, silent
    )


def _row(size: Size, parameters: int, quality: tuple[float, float | None, float | None], speed: Speed) -> MeasuredSize:
    return MeasuredSize(
        size.width, size.depth, parameters, *quality, speed.first_token_seconds, 1 / speed.tokens_per_second
    )


def _marked(measured: list[MeasuredSize]) -> tuple[MeasuredSize, ...]:
    """Return the sizes with the costs at which nothing beats them."""
    fronts = {}
    for cost in COSTS:
        points = {str(place): (one.perplexity, float(getattr(one, cost))) for place, one in enumerate(measured)}
        fronts[cost] = pareto_front(points, higher_is_better=False)
    return tuple(
        replace(one, unbeaten=tuple(cost for cost, front in fronts.items() if str(place) in front))
        for place, one in enumerate(measured)
    )


def _folder(config: EvalConfig, model: str) -> Path | None:
    if config.output is not None:
        return Path(config.output)
    return Path(model) / NAME if RunFolder(Path(model)).is_run else None


def _write(record: PaletteRecord, folder: Path, config: EvalConfig) -> PaletteRecord:
    """Write record and picture; each file appears whole or not at all."""
    inside = config.output is None
    with exclusive(Path(record.model)) if inside else nullcontext():
        atomic.make_folder(folder)
        if config.pictures:
            draw(record, folder)
        text = json.dumps(asdict(replace(record, folder=None)), indent=1)
        atomic.write_file(folder / f"{NAME}.json", text + "\n")
    return replace(record, folder=folder)


def draw(record: PaletteRecord, folder: Path) -> None:
    """Write the picture of perplexity against both costs, ``palette.png`` and ``palette.svg``.

    Args:
        record: what was measured.
        folder: an existing folder.
    """
    depths, heights = sorted({one.depth for one in record.sizes}), [one.perplexity for one in record.sizes]
    with plot_style():
        figure, axes = panels(len(COSTS), width=3.4, height=2.8)
        for ax, (cost, title) in zip(axes, COSTS.items(), strict=True):
            for depth, colour in zip(depths, COLOURS * len(depths), strict=False):
                sizes = [one for one in record.sizes if one.depth == depth]
                places = [(float(getattr(one, cost)), one.perplexity) for one in sizes]
                ax.plot(*zip(*places, strict=True), color=colour, label=f"depth {depth:.3g}")
                for (x, y), one in zip(places, sizes, strict=True):
                    ax.plot([x], [y], "o", color=colour, markerfacecolor=colour if cost in one.unbeaten else "white")
            if max(heights) >= _TALL * min(heights):
                log_heights(ax)
            ax.set_xlabel(title)
            ax.set_ylabel("perplexity")
        axes[0].legend(title="filled: unbeaten")
        save(figure, folder, NAME)
