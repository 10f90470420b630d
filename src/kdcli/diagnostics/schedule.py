"""Compares rules of admission on an edge node: reads node and requests, runs the epochs, draws what limits them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError

from kdcli.config import yaml_file
from kdcli.config.names import nearest
from kdcli.diagnostics.admission import (
    RULES,
    Epoch,
    Lengths,
    Link,
    Node,
    Quantised,
    Request,
    Rule,
    Served,
    Work,
    poisson,
    search,
    serve,
    static,
)
from kdcli.diagnostics.deployment import BYTES, config_of
from kdcli.errors import InputError, MachineError, UsageError
from kdcli.events import Event, Report
from kdcli.metrics.curve import Curve, Series
from kdcli.models.cache_form import cache_form
from kdcli.models.sizes import sizes_of
from kdcli.plots import draw
from kdcli.storage import atomic, stored
from kdcli.text import one_line

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
DEADLINES = (0.25, 0.5, 1.0, 2.0)
"""Factors by which rates of arrival and deadlines are varied in the figures."""

_COUNTS = tuple(range(2, 17, 2))
"""Waiting requests at which the search is compared with trying every set."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Link(_Section):
    """A shared radio link."""

    seconds: _Positive = 0.25
    bandwidth_hz: _Positive = 20e6


class _Kind(_Section):
    """The model with weights of one kind."""

    bytes: _Positive | None = None
    slowdown: _Positive = 1.0
    quality: _Share = 1.0


class _Range(_Section):
    """Ranges that drawn requests are taken from."""

    prompt: tuple[Annotated[int, Field(ge=1, le=10**6)], Annotated[int, Field(ge=1, le=10**6)]] = Lengths.prompt
    answer: tuple[Annotated[int, Field(ge=1, le=10**6)], Annotated[int, Field(ge=1, le=10**6)]] = Lengths.answer
    deadline: tuple[_Positive, _Positive] = Lengths.deadline
    accuracy: tuple[_Share, _Share] = Lengths.accuracy
    snr_db: tuple[float, float] = Lengths.snr_db


class _Node(_Section):
    """The file that describes a node."""

    memory: Annotated[ByteSize, Field(gt=0)]
    flops: _Positive
    epoch_seconds: _Positive = 1.0
    uplink: _Link = _Link()
    downlink: _Link = _Link()
    bits_per_token: _Positive = 16.0
    cache_bytes: _Positive = 2.0
    quantisers: dict[str, _Kind] = {"bf16": _Kind()}
    requests: _Range = _Range()


class _Row(_Section):
    """One line of a file of requests."""

    prompt: Annotated[int, Field(ge=1, le=10**6)]
    answer: Annotated[int, Field(ge=1, le=10**6)]
    deadline: _Positive
    arrival: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    accuracy: _Share = 0.0
    snr_db: Annotated[float, Field(ge=-50, le=100)] = 20.0


def read_node(path: Path) -> tuple[Node, Lengths]:
    """Read what a node offers, and the ranges that requests are drawn from.

    Raises:
        InputError: names the line that cannot be used.
        MachineError: the file may not be read.
    """
    tree = yaml_file.read_config(path)
    fix = "the page on edge devices shows such a file"
    try:
        found = _Node.model_validate({key: node.plain() for key, node in tree.items()})
    except ValidationError as error:
        raise InputError("SCH-01", _reason(error), where=_line(path, tree, error), fix=fix) from error
    lengths = Lengths(**{name: getattr(found.requests, name) for name in _Range.model_fields})
    for name in _Range.model_fields:
        low, high = getattr(lengths, name)
        if low > high:
            what = f"requests.{name}: the range ends below its begin: {low:g} to {high:g}"
            raise InputError("SCH-01", what, where=one_line(str(path)), fix=fix)
    kinds = []
    for name, kind in found.quantisers.items():
        if kind.bytes is None and name not in BYTES:
            what = f"quantisers.{one_line(name, 40)} needs bytes, per weight; known by name: {', '.join(BYTES)}"
            raise InputError("SCH-01", what, where=one_line(str(path)), fix=fix)
        kinds.append(Quantised(name, kind.bytes or BYTES[name], kind.slowdown, kind.quality))
    if not kinds:
        raise InputError("SCH-01", "quantisers names none", where=one_line(str(path)), fix=fix)
    uplink, downlink = (Link(link.seconds, link.bandwidth_hz) for link in (found.uplink, found.downlink))
    node = Node(
        float(found.memory), found.flops, found.epoch_seconds, uplink, downlink, tuple(kinds), found.bits_per_token,
        found.cache_bytes,
    )  # fmt: skip
    return node, lengths


def read_requests(path: Path) -> list[Request]:
    """Read requests: JSON lines with prompt and answer in tokens, deadline in seconds, and perhaps more.

    Raises:
        InputError: names the line that cannot be used.
        MachineError: the file may not be read.
    """
    fix = 'write {"arrival": 0.5, "prompt": 64, "answer": 32, "deadline": 4} on each line'
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise InputError("DATA-01", "not found", where=one_line(str(path)), fix="check the path") from error
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise MachineError("DATA-01", what, where=one_line(str(path)), fix="check the path") from error
    rows, adapter = [], TypeAdapter(_Row)
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        where = f"{one_line(path.name)} line {number}"
        try:
            rows.append(adapter.validate_python(stored.parse(raw)))
        except ValidationError as error:
            raise InputError("SCH-02", _reason(error), where=where, fix=fix) from error
        except ValueError as error:
            raise InputError("SCH-02", "not JSON", where=where, fix=fix) from error
    if not rows:
        raise InputError("DATA-02", "the file holds no requests", where=one_line(str(path)), fix=fix)
    return [Request(**row.model_dump()) for row in rows]


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = one_line(".".join(map(str, first["loc"])), 80)
    return f"{place}: {one_line(first['msg'], 120)}" if place else one_line(first["msg"], 120)


def _line(path: Path, tree: dict[str, yaml_file.Node], error: ValidationError) -> str:
    """Return the file and the line of the entry that an error is about, or of the nearest one above it."""
    line, here = None, tree
    for part in error.errors(include_url=False)[0]["loc"]:
        node = here.get(str(part)) if isinstance(here, dict) else None
        if node is None:
            break
        line, here = node.line, node.value
    return one_line(str(path)) + (f" line {line}" if line is not None else "")


def rule_of(text: str) -> Rule:
    """Return a rule by its name.

    Raises:
        UsageError: SCH-03, there is none.
    """
    if text in RULES:
        return RULES[text]
    name, colon, number = text.partition(":")
    if name == "static" and colon and number.isascii() and number.isdecimal() and 1 <= int(number[:9]) <= 10**6:
        return static(int(number))
    near = nearest(text, {known: known for known in (*RULES, "static:8")})
    fix = f"did you mean {near}?" if near else f"choose among {', '.join(RULES)}, static:N"
    raise UsageError("SCH-03", f'unknown rule "{one_line(text, 40)}"', where="--policy", fix=fix)


@dataclass(frozen=True)
class Traffic:
    """Where requests come from: a list, or draws of a rate.

    Args:
        given: requests of a file; None to draw them.
        rate: mean arrivals per second.
        seconds: stretch of time that requests arrive in.
        lengths: ranges of drawn requests.
        seed: of the draws.
    """

    given: Sequence[Request] | None = None
    rate: float = 1.0
    seconds: float = 20.0
    lengths: Lengths = field(default_factory=Lengths)
    seed: int = 0

    def requests(self, *, rate: float = 1.0, deadline: float = 1.0) -> list[Request]:
        """Return the requests, their rate and their deadlines multiplied."""
        if self.given is None:
            found = poisson(self.rate * rate, self.seconds, self.lengths, self.seed)
        else:
            found = [replace(one, arrival=one.arrival / rate) for one in self.given]
        return [replace(one, deadline=one.deadline * deadline) for one in found]


@dataclass(frozen=True)
class ScheduleReport:
    """What rules of admission make of the same requests.

    Args:
        model: as typed.
        kinds: forms of the model that fit the node.
        rules: what each made of the requests as they are.
        curves: what was varied.
        notes: what should be known of the numbers.
    """

    model: str
    kinds: tuple[Quantised, ...]
    rules: tuple[Served, ...]
    curves: tuple[Curve, ...]
    notes: tuple[str, ...]


def compare_rules(
    model: str, node: Node, traffic: Traffic, rules: Sequence[str], report: Report, *, figures: bool
) -> ScheduleReport:
    """Run every rule on the same requests.

    Args:
        model: run or model folder, hub id, or a config.json; no weight is read.
        node: what computes.
        traffic: where requests come from.
        rules: their names.
        report: called with progress events.
        figures: whether to vary arrivals, deadlines and quantisers as well.

    Raises:
        InputError: the config cannot be used, or no form of the model fits the node's memory.
    """
    named = {name: rule_of(name) for name in rules}
    config = config_of(model)
    work = Work(sizes_of(config), cache_form(config, model))
    fitting = tuple(kind for kind in node.kinds if kind.bytes * work.sizes.parameters < node.memory)
    if not fitting:
        least = min(node.kinds, key=lambda kind: kind.bytes)
        size = least.bytes * work.sizes.parameters
        what = f"the weights in {least.name} take {size:,.0f} bytes, the node has {node.memory:,.0f}"
        raise InputError("SCH-04", what, where=one_line(model), fix="take a smaller model, or another quantiser")
    notes = tuple(f"{kind.name} does not fit the memory" for kind in node.kinds if kind not in fitting)
    node = replace(node, kinds=fitting)
    requests = traffic.requests()
    total = len(named) * (1 + figures * (len(RATES) * (traffic.given is None) + len(DEADLINES) + len(fitting)))
    done = 0

    def run(name: str, requests: Sequence[Request], node: Node = node) -> Served:
        nonlocal done
        found = serve(requests, node, work, name, named[name])
        done += 1
        report(Event("progress", "scheduling", done=done, total=total))
        return found

    report(Event("stage", "scheduling", total=total))
    found = tuple(run(name, requests) for name in named)
    curves: list[Curve] = []
    if figures:
        if traffic.given is None:
            at_rates = [traffic.requests(rate=factor) for factor in RATES]
            lines = {name: [run(name, one).share for one in at_rates] for name in named}
            rates = [factor * traffic.rate for factor in RATES]
            curves.append(_curve("arrivals", "arrivals per second", rates, lines))
        late = [traffic.requests(deadline=factor) for factor in DEADLINES]
        lines = {name: [run(name, one).share for one in late] for name in named}
        curves.append(_curve("deadlines", "factor of the deadlines", DEADLINES, lines))
        alone = [replace(node, kinds=(kind,)) for kind in fitting]
        lines = {name: [run(name, requests, one).share for one in alone] for name in named}
        names = tuple(kind.name for kind in fitting)
        curves.append(_curve("quantisers", "weights", range(len(names)), lines, ticks=names))
        curves.append(_search_curve(traffic, node, work))
    return ScheduleReport(model, fitting, found, tuple(curves), notes)


def _curve(
    name: str, label: str, x: Sequence[float], lines: dict[str, list[float]], ticks: tuple[str, ...] = ()
) -> Curve:
    series = tuple(Series(rule, tuple(map(float, x)), tuple(shares)) for rule, shares in lines.items())
    title = "share of requests that are answered in time"
    return Curve(name, title, label, "share answered", series, "points" if ticks else "line", ticks)


def _search_curve(traffic: Traffic, node: Node, work: Work) -> Curve:
    """Return how many nodes the search visits, and how many sets there are, by the number of waiting requests."""
    lengths = traffic.lengths
    nodes = []
    for count in _COUNTS:
        drawn = poisson(8.0 * count, 1.0, lengths, traffic.seed)
        waiting = [replace(one, arrival=0.0) for one in (traffic.given or drawn)][:count]
        epochs = [Epoch(waiting, 0.0, node, work, kind) for kind in node.kinds]
        nodes.append(float(np.mean([search(epoch).nodes for epoch in epochs])))
    x = tuple(map(float, _COUNTS))
    sets = tuple(2.0**count for count in _COUNTS)
    series = (Series("dftsp, nodes visited", x, tuple(nodes)), Series("all sets", x, sets))
    return Curve("search", "size of the search", "waiting requests", "nodes", series)


def write_schedule(folder: Path, found: ScheduleReport) -> None:
    """Write ``schedule.json`` and a picture for each curve.

    Raises:
        MachineError: the folder may not be written.
    """
    atomic.make_folder(folder)
    values: dict[str, Any] = asdict(found)
    atomic.write_file(folder / "schedule.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    for curve in found.curves:
        draw(folder, curve)
