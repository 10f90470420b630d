"""``kd federate``: one student, trained by clients on rows of their own, round by round.

Each client of each round is an ordinary run: ``clients/round-0001-client-03`` is the folder that ``kd distill`` would
have written with the same settings. So whatever runs the cells of a comparison runs clients, and a round that was
killed goes on where its runs stopped.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from kdcli import distributed
from kdcli.comparison.records import Failure
from kdcli.config import resolve
from kdcli.config.schema import DistillConfig, EvalConfig, FederateConfig
from kdcli.config.sections import EvalSettings, FederationConfig
from kdcli.distill.prepare import Prepared, prepare_run
from kdcli.distill.records import RunRecord
from kdcli.distill.run import read_run, report_notes
from kdcli.errors import BusyError, IntegrityError, KDError, MachineError, NumericsError, UsageError
from kdcli.evaluation.edge import energy_meter
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.run_access import remove_superseded
from kdcli.events import Event, Report, silent
from kdcli.federated import model_folder
from kdcli.federated.rounds import (
    CLIENTS,
    ROUNDS,
    START,
    Draw,
    Place,
    RoundRecord,
    Server,
    client_name,
    draw_clients,
    newest_round,
    place_after,
    read_round,
    round_name,
    weight_of,
)
from kdcli.federated.server import build_server
from kdcli.loading.session import Session
from kdcli.models.adapters import attach, save_adapter
from kdcli.models.load import save_student
from kdcli.registry import plugins
from kdcli.rows.split import ByColumn, CutRows, Split, SplitRecord, build_split, cut_rows, write_parts
from kdcli.storage import atomic, lock, stored
from kdcli.storage.digests import check_named, replace_file
from kdcli.storage.jsonl import JsonlStore
from kdcli.storage.run_dir import ADAPTER, CONFIG, EVAL, MADE, MODEL, NOT_CONTENT, RunFolder, check_identity
from kdcli.students.supernet_spec import is_supernet
from kdcli.study.cells import Cell
from kdcli.study.executors.base import Executor
from kdcli.study.executors.select import check_executor, executor_name, make_executor, with_threads
from kdcli.study.scheduler import LOGS, PLAN, Outcome, Scheduler
from kdcli.text import typed

FEDERATION, SHARDS = "federation.json", "shards"
METRICS, TIMING = "rounds.jsonl", "timing.jsonl"
SCHEMA = 1
_KINDS = {kind.exit_code: kind for kind in (MachineError, BusyError, IntegrityError, NumericsError)}
_MEASURED_HERE = ("compute_seconds", "communication_seconds", "joules")
"""Fields of a round that differ from one machine to the next; they stand in a file of their own."""


@dataclass(frozen=True)
class FederationRecord:
    """A federation whose rounds are done.

    Args:
        folder: everything it wrote.
        model: the student after the last round.
        clients: how many there are.
        rounds: from the student before the first one on.
    """

    folder: Path
    model: Path
    clients: int
    rounds: tuple[RoundRecord, ...]


def federate(
    config: FederateConfig, report: Report, *, command: str = "", session: Session | None = None
) -> FederationRecord:
    """Train a student by clients that have rows of their own; go on where it was stopped.

    Args:
        config: the federation's settings; ``output`` is its folder.
        report: called with events.
        command: what to type to go on after an interruption.
        session: what is loaded already.

    Raises:
        KDError: a mistake in the settings, found before weights are read, or no client of a round returned.
        InterruptedRunError: stopped by a signal after saving.
    """
    output = _check(config)
    session = session or Session()
    hardware, said = with_threads(config.execution, config.hardware)
    config = config.model_copy(update={"hardware": hardware})
    way, shares = _split_of(config.federation)
    server = _server_of(config)
    whole = prepare_run(_settings(config), session)
    if whole.dataset.with_images:
        what, fix = "rows have images, which clients do not find beside their shards", "train on all rows in one run"
        raise UsageError("IMG-06", what, where="--data", fix=fix)
    for note in said:
        report(Event("note", note))
    report_notes(whole, report)
    cut = cut_rows(config.data, way, shares, config.train.seed, silent)
    _check_clients(config.federation, cut)
    atomic.make_folder(output)
    with lock.hold(output):
        identity = _identity(config, server, way, whole)
        _begin(output, resolve.to_yaml(config), identity, config.federation.rounds)
        with suppress(MachineError):  # a federation that is done can be read where nothing may be written
            for one in (output, *(output / name for name in (SHARDS, ROUNDS, CLIENTS, EVAL, MADE, PLAN, LOGS))):
                atomic.remove_temporaries(one)
            _tidy_clients(output / CLIENTS, config)
        shards = write_parts(cut, output / SHARDS)
        again = command or plugins.again(f"kd federate -c {typed(output / CONFIG)} -o {typed(output)}")
        executor = make_executor(config.execution, hardware, output, whole.device, session, again)
        try:
            work = _Federation(config, server, whole, identity, shards, executor, report, session, again)
            return work.run()
        finally:
            executor.close()


def _check(config: FederateConfig) -> Path:
    """Refuse, before anything is loaded, what cannot become a federation."""
    if distributed.world() > 1:
        fix = "start kd federate once; --gpus N gives each run of a client N processes"
        raise UsageError("CLI-22", "kd federate was started by a launcher of several processes", fix=fix)
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="give one, such as -o federation")
    if is_supernet(str(config.student)):
        what = "clients train one size, and a supernet is several"
        raise UsageError("CLI-09", what, where="--student", fix="give a folder, cut: or random:")
    if config.lora.rank is None and config.federation.lora_mean != "factors":
        what = "has no effect without an adapter"
        raise UsageError("CLI-09", what, where="--lora-mean", fix="add --lora 8, or leave it out")
    if config.lora.start is not None or config.lora.freeze_a:
        what = "the server decides what an adapter begins with, and what of it trains"
        raise UsageError("CLI-09", what, where="lora", fix="leave it out, or give --lora-mean freeze_a")
    check_executor(config.execution, config.hardware)
    return Path(config.output)


def _split_of(federation: FederationConfig) -> tuple[Split, list[float]]:
    """Return how rows are cut, and the share of each client; none where the rows say how many there are."""
    way, clients = build_split(federation.split, "--split"), federation.clients
    if isinstance(way, ByColumn):
        return way, []
    if clients is None:
        raise UsageError("CLI-20", "no number of clients", where="--clients", fix="give one, such as --clients 8")
    return way, [1.0 / clients] * clients


def _check_clients(federation: FederationConfig, cut: CutRows) -> None:
    if federation.clients is not None and federation.clients != len(cut.parts):
        what = f"the column has {len(cut.parts)} values, and each is a client"
        raise UsageError("CLI-09", what, where=f"--clients {federation.clients}", fix="leave --clients out")


def _server_of(config: FederateConfig) -> Server:
    """Return the server.

    Raises:
        UsageError: no such optimizer, or one that a mean of adapters does not go with.
    """
    optimizer = build_server(config.federation.server)
    mean = config.federation.lora_mean
    if mean == "exact" and optimizer != build_server("fedavg"):
        what = f"exact keeps the mean of the updates, and {config.federation.server} takes another step"
        fix = "leave --server out, or give --lora-mean factors"
        raise UsageError("CLI-09", what, where="--lora-mean exact", fix=fix)
    lora = config.lora.model_copy(update={"keep": True, "freeze_a": mean == "freeze_a"})
    return Server(optimizer, lora, mean, config.train.seed, config.federation.clients or 1)


def _settings(config: FederateConfig) -> DistillConfig:
    """Return the settings of one run on all rows, from which those of the clients are made."""
    mean, output = config.federation.lora_mean, Path(str(config.output))
    changes = {"teacher_text": config.data.teacher_text or str(output / MADE)}
    lora = config.lora if config.lora.rank is None else config.lora.model_copy(update={"freeze_a": mean == "freeze_a"})
    return DistillConfig(
        teacher=config.teacher,
        teacher_cache=config.teacher_cache,
        student=config.student,
        lora=lora,
        teacher_quantization=config.teacher_quantization,
        server=config.server,
        loss=config.loss,
        data=config.data.model_copy(update=changes),
        train=config.train,
        hardware=config.hardware,
        evaluation=EvalSettings(metrics=("perplexity",)),
    )


def _identity(config: FederateConfig, server: Server, way: Split, whole: Prepared) -> dict[str, Any]:
    """Return everything that the student's weights depend on but the number of rounds, which may grow."""
    federation, train = config.federation, config.train
    own = {name: value for name, value in whole.identity.items() if name != "steps"}
    return {
        **own,
        "train.epochs": None if train.max_steps is not None else train.epochs,
        "train.max_steps": train.max_steps,
        "split": {"way": way.name, **way.model_dump(mode="json")},
        "clients": federation.clients,
        "server": {"optimizer": server.optimizer.name, **server.optimizer.model_dump(mode="json")},
        "lora_mean": None if config.lora.rank is None else server.lora_mean,
        "weigh": federation.weigh,
        "fraction": federation.fraction,
        "drop": federation.drop,
        "without_failed": federation.without_failed,
        "held_out": None if whole.test is None else whole.test.digest,
    }


def _begin(output: Path, settings: str, identity: dict[str, Any], rounds: int) -> None:
    """Write what the federation is, or see that the folder holds this one.

    Raises:
        UsageError: the folder holds something else.
        ExperimentChangedError: it holds another federation.
        IntegrityError: a file is not what was written.
    """
    path = output / FEDERATION
    if path.is_file():
        fix = "restore the file, or start in a new folder"
        check_named(output, (FEDERATION,), fix)
        saved = stored.read_record(path, dict[str, Any], fix=fix)["identity"]
        if (output / START).is_dir():
            check_identity(saved, identity, output)
        elif saved != identity and (output / SHARDS).is_dir():  # it stopped before any training: another may begin
            atomic.remove_folder(output / SHARDS)
    elif any(item.name not in NOT_CONTENT and not item.name.startswith(".tmp-") for item in output.iterdir()):
        raise UsageError("FED-01", "the folder holds something else", where=str(output), fix="choose another -o")
    if (done := newest_round(output)) > rounds:
        what = f"{done} rounds are done, and {rounds} are asked for"
        raise UsageError("FED-02", what, where=str(output), fix=f"give --rounds {done}, or choose another -o")
    text = json.dumps({"kind": "federation", "schema": SCHEMA, "identity": identity}, indent=1, sort_keys=True)
    replace_file(path, text + "\n")  # first: what says whose folder this is, should nothing else be there yet
    replace_file(output / CONFIG, settings)


def _tidy_clients(folder: Path, config: FederateConfig) -> None:
    """Remove what finished clients do not need and could not remove themselves, as where the disk refused it."""
    for client in sorted(folder.glob("*")):
        with suppress(KDError):  # damaged: the run itself says so when it is asked for
            if RunFolder(client).is_done:
                remove_superseded(client, keep_checkpoints=config.train.keep_finished)


def _finished(cell: Cell, session: Session) -> tuple[RunRecord, None] | None:
    """Return the record of a client's run that is done, else None; clients are not measured."""
    try:
        if cell.folder.check(cell.prepared.identity, resume=True) and cell.folder.is_done:
            return read_run(cell.folder.path), None
    except KDError:  # damaged: the run itself says so when it is asked for
        return None
    return None


class _Federation:
    """A federation under way."""

    def __init__(
        self, config: FederateConfig, server: Server, whole: Prepared, identity: dict[str, Any], shards: SplitRecord,
        executor: Executor, report: Report, session: Session, command: str,
    ) -> None:  # fmt: skip
        self.config, self.whole, self.identity, self.shards = config, whole, identity, shards
        self.server = replace(server, clients=len(shards.parts))
        self.output = shards.folder.parent
        self.report, self.session = report, session
        self.executor = executor
        self.scheduler = Scheduler(executor, self.output, report, session, command, _finished)
        self.metrics = JsonlStore(self.output / METRICS, itemgetter("round"))
        self.timing = JsonlStore(self.output / TIMING, itemgetter("round"))

    def run(self) -> FederationRecord:
        self._start()
        for name in (ROUNDS, CLIENTS):
            atomic.make_inside(self.output, name)
        done, rounds = newest_round(self.output), self.config.federation.rounds
        self._check_lines(done)
        place = self._place(done)
        self._book(read_round(place) if done else RoundRecord(0), place)
        self._remove_old(done)
        for number in range(done + 1, rounds + 1):
            self.report(Event("stage", f"round {number} of {rounds}"))
            joules = self._round(number, place)
            place = self._place(number)
            self._book(read_round(place), place, joules)
            self._remove_old(number)
        records = tuple(self._read(number) for number in range(rounds + 1))
        final = self.output / MODEL
        model_folder.write(final, place.model, self.whole, self.identity, records)
        return FederationRecord(self.output, final, self.server.clients, records)

    def _place(self, number: int) -> Place:
        return place_after(self.output, number, exact=self.server.lora_mean == "exact")

    def _start(self) -> None:
        """Write what the first round begins with, unless it is there."""
        final, lora, pair = self.output / START, self.server.lora, self.whole.pair
        if final.is_dir():
            atomic.verify_folder(final)
            return
        seed = self.config.train.seed
        student = self.session.load_student(pair, seed=seed, device=torch.device("cpu"))

        def fill(target: Path) -> None:
            save_student(student, target / MODEL)
            if lora.rank is not None:
                save_adapter(attach(student.model, lora, seed=seed, name=pair.student), target / ADAPTER)

        atomic.commit_folder(final, fill, {"kind": "start"})

    def _check_lines(self, done: int) -> None:
        """Refuse to go on without the lines of rounds whose models may be gone."""
        lost = sorted(set(range(done)) - self.metrics.keys())
        if lost:
            what = f"the line of round {lost[0]} is missing or damaged"
            raise IntegrityError("RUN-01", what, where=str(self.metrics.path), fix="restore the file, or start anew")

    def _book(self, record: RoundRecord, place: Place, joules: float | None = None) -> None:
        """Measure what a round left and add its lines, unless they are there."""
        if self.metrics.find(record.round) is not None:
            return
        record = replace(record, **self._measured(record.round, place.model))
        if record.round:
            record = replace(record, joules=joules, **self._times(record))
        whole = asdict(record)
        here = {name: whole.pop(name) for name in _MEASURED_HERE}
        if record.round:
            self.timing.add({"round": record.round, **here})
        self.metrics.add(whole)
        if record.perplexity is not None:
            self.report(Event("note", f"round {record.round}: perplexity {record.perplexity:.6g}"))

    def _times(self, record: RoundRecord) -> dict[str, float]:
        """Return the time of computation, as the clients' runs tell it, and that of communication."""
        clients, bandwidth = self.output / CLIENTS, self.config.federation.bandwidth
        runs = [read_run(clients / client_name(record.round, client)) for client in record.returned]
        sent = (
            {"communication_seconds": 8 * (record.bytes_down + record.bytes_up) / (bandwidth * 1e6)}
            if bandwidth
            else {}
        )
        return {"compute_seconds": sum(run.seconds for run in runs), **sent}

    def _read(self, number: int) -> RoundRecord:
        found = {**(self.timing.find(number) or {}), **(self.metrics.find(number) or {})}
        known = {one.name for one in fields(RoundRecord)}
        wanted = {name: value for name, value in found.items() if name in known}
        return stored.fit(wanted, RoundRecord, self.metrics.path, fix="restore the file, or start anew")

    def _measured(self, number: int, model: Path) -> dict[str, float]:
        """Return the held-out perplexity of a round's model; nothing without held-out rows."""
        data = self.config.data
        if data.eval is None:
            return {}
        asked = EvalConfig(
            model=str(model),
            data=data.model_copy(update={"train": None, "limit": None}),
            hardware=self.config.hardware,
            evaluation=EvalSettings(metrics=("perplexity",)),
            output=str(self.output / EVAL / round_name(number)),
            pictures=False,
        )
        found = evaluate_run(asked, self._quiet, session=self.session, reuse=True)
        return {name: found.estimates[name].mean for name in ("nll", "perplexity")}

    def _quiet(self, event: Event) -> None:
        """Pass on what is not the same after every round."""
        if event.kind not in ("note", "stage", "warning"):
            self.report(event)

    def _round(self, number: int, before: Place) -> float | None:
        """Let the clients of a round train, and write what follows from what they return.

        Returns:
            the energy that training took, if this process saw all of it.
        """
        federation, seed = self.config.federation, self.config.train.seed
        drawn = draw_clients(seed, number, self.server.clients, federation.fraction, federation.drop)
        cells = [self._cell(client, number, before) for client in drawn.working]
        whole = all(not one.folder.path.exists() for one in cells) and executor_name(
            self.config.execution, self.config.hardware
        ) in ("inline", "local")
        meter = energy_meter(self.whole.device.device) if whole else None
        outcome = self.scheduler.run(cells)
        joules = meter.joules() if meter is not None else None
        record = self._returned(number, drawn, cells, outcome)
        steps = sum(bool((self.metrics.find(one) or {}).get("returned")) for one in range(1, number))
        runs = [cells[index].folder.path for index in sorted(outcome.finished)]
        self.report(Event("stage", f"averaging {len(runs)} clients"))
        self.server.write(self.output / ROUNDS / round_name(number), before, runs, record, steps)
        return joules

    def _cell(self, client: int, number: int, before: Place) -> Cell:
        """Return a client's run of a round."""
        settings, train, lora = _settings(self.config), self.config.train, self.server.lora
        shard = self.shards.parts[client].file
        data = settings.data.model_copy(update={"train": str(shard), "eval": None, "limit": None})
        seed = (train.seed + (number - 1) * self.server.clients + client) % 2**63
        changes: dict[str, Any] = {
            "student": str(before.base), "data": data, "train": train.model_copy(update={"seed": seed}),
        }  # fmt: skip
        if lora.rank is not None:
            changes["lora"] = lora.model_copy(update={"start": str(before.adapter)})
        settings = settings.model_copy(update=changes)
        folder = RunFolder(self.output / CLIENTS / client_name(number, client))
        label = f"round {number}, client {client}"
        return Cell(label, seed, settings, prepare_run(settings, self.session), folder)

    def _returned(
        self, number: int, drawn: Draw, cells: Sequence[Cell], outcome: Outcome[tuple[RunRecord, None]]
    ) -> RoundRecord:
        """Return the record of a round as far as the clients' runs tell it.

        Raises:
            KDError: clients trained, and none of them returned; or one failed for another reason than its numbers.
        """
        done = sorted(outcome.finished)
        serious = [one for index, one in sorted(outcome.failed.items()) if not self._may_go_on(one)]
        if serious or (cells and not done):
            first = serious[0] if serious else outcome.failed[min(outcome.failed)]
            what = f"{len(outcome.failed)} of {len(cells)} clients of round {number} failed; the first: {first.message}"
            kind = _KINDS.get(first.exit_code, UsageError)
            raise kind("FED-03", what, fix=f"see {first.log}; the same line goes on")
        runs = [outcome.finished[index][0] for index in done]
        rows = [len(cells[index].prepared.dataset) for index in done]
        weights = [weight_of(run, count, self.config.federation.weigh) for run, count in zip(runs, rows, strict=True)]
        failed = tuple(drawn.working[index] for index in sorted(outcome.failed))
        if drawn.lost or failed:
            what = f"round {number}: {len(done)} of {len(drawn.asked)} clients returned; their weights add up to 1"
            self.report(Event("warning" if failed else "note", what))
        return RoundRecord(
            number, drawn.asked, tuple(drawn.working[index] for index in done), drawn.lost, failed, tuple(weights),
            tokens=sum(run.tokens for run in runs),
        )  # fmt: skip

    def _may_go_on(self, failure: Failure) -> bool:
        """Whether a round goes on without a client: what a machine does must not change the student."""
        return failure.exit_code == NumericsError.exit_code or self.config.federation.without_failed

    def _remove_old(self, number: int) -> None:
        """Remove models and runs of the rounds before the last few; their lines stay."""
        last = number - self.config.federation.keep
        for folder in (self.output / ROUNDS, self.output / CLIENTS):
            for path in folder.glob("round-*"):
                if int(path.name.split("-")[1]) <= last:
                    atomic.remove_folder(path)
