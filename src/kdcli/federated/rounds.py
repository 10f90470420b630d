"""One round: who takes part, what their runs returned, and the weights that follow, written whole or not at all.

::

    start/                what the first round begins with: model/, and adapter/ with LoRA
    rounds/round-0001/    what a round ended with: model/ as it is measured, adapter/ and, of exact, the frozen base/,
                          server.safetensors with the server's moments, round.json
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcli.config.sections import LoraConfig
from kdcli.distill.records import RunRecord
from kdcli.federated.low_rank import Pair, factorise, gap, mean_product, pairs_of, residual_numbers, squares
from kdcli.federated.server import ServerOptimizer, server_step, weighted_mean
from kdcli.models.adapters import ADAPTER_WEIGHTS, alpha_of, attach, change_frozen, without_adapter
from kdcli.models.checks import open_folder
from kdcli.models.load import load_model, save_student
from kdcli.storage import atomic, stored
from kdcli.storage.run_dir import ADAPTER, MODEL

START, ROUNDS, CLIENTS = "start", "rounds", "clients"
_BASE, _SERVER, _ROUND = "base", "server.safetensors", "round.json"
_PURPOSE = 0x666564  # keeps these draws apart from others of the same seed
_BYTES = 4  # of a number that is sent
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Draw:
    """Who takes part in a round.

    Args:
        asked: clients that get the weights.
        lost: those among them that do not return.
    """

    asked: tuple[int, ...]
    lost: tuple[int, ...]

    @property
    def working(self) -> tuple[int, ...]:
        """The clients that train."""
        return tuple(one for one in self.asked if one not in self.lost)


def draw_clients(seed: int, number: int, clients: int, fraction: float, drop: float) -> Draw:
    """Draw who takes part in a round; the same in every numpy version.

    Args:
        seed: of the federation.
        number: of the round, from 1.
        clients: how many there are.
        fraction: share of them that is asked, one at least.
        drop: probability that one of these does not return.

    >>> draw_clients(0, 1, 4, 1.0, 0.0)
    Draw(asked=(0, 1, 2, 3), lost=())
    """
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, number, _PURPOSE])))
    count = max(1, round(fraction * clients))
    asked = tuple(sorted(random.permutation(clients)[:count].tolist()))
    chances = random.random_sample(count)
    return Draw(asked, tuple(one for one, chance in zip(asked, chances, strict=True) if chance < drop))


@dataclass(frozen=True)
class RoundRecord:
    """What a round did and what it cost; round 0 is the student before it.

    Args:
        round: its number.
        asked: clients that got the weights.
        returned: those whose weights were averaged.
        lost: those that were drawn not to return.
        failed: those whose run failed.
        weights: of each that returned, its rows or tokens.
        tokens: response tokens that were trained on.
        moved: norm of the mean's difference to what the round began with.
        gap: with LoRA, what the mean of the factors loses of the mean of the updates, relative to the latter.
        bytes_down: sent to clients.
        bytes_up: sent by clients.
        nll: mean negative log-likelihood of a token of the held-out rows after the round; None without them.
        perplexity: its exponential.
        compute_seconds: time in training steps, all clients together.
        communication_seconds: bytes over the bandwidth of a client's link, all clients together.
        joules: what the machine took meanwhile; None where that is not known.
    """

    round: int
    asked: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    tokens: int = 0
    moved: float = 0.0
    gap: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    nll: float | None = None
    perplexity: float | None = None
    compute_seconds: float | None = None
    communication_seconds: float | None = None
    joules: float | None = None

    @property
    def granularity(self) -> float | None:
        """Time of computation over time of communication; None where either is not known."""
        both = self.compute_seconds, self.communication_seconds
        return both[0] / both[1] if both[0] is not None and both[1] else None

    @property
    def tokens_per_second(self) -> float | None:
        """Response tokens per second in training steps."""
        return self.tokens / self.compute_seconds if self.compute_seconds else None

    @property
    def tokens_per_joule(self) -> float | None:
        """Response tokens per second and watt."""
        return self.tokens / self.joules if self.joules else None


@dataclass(frozen=True)
class Place:
    """What a round begins with.

    Args:
        folder: start/, or that of the round before.
        base: the model that clients begin with; with LoRA, the one below the adapter.
    """

    folder: Path
    base: Path

    @property
    def model(self) -> Path:
        """The whole model, an adapter merged into it."""
        return self.folder / MODEL

    @property
    def adapter(self) -> Path:
        """The adapter that clients begin with."""
        return self.folder / ADAPTER


def client_name(number: int, client: int) -> str:
    """Return what the run folder of a client in a round is called.

    >>> client_name(7, 3)
    'round-0007-client-03'
    """
    return f"{round_name(number)}-client-{client:02d}"


def place_after(output: Path, number: int, *, exact: bool) -> Place:
    """Return what a round left; that of round 0 is the start."""
    folder = output / START if number == 0 else output / ROUNDS / round_name(number)
    start = output / START / MODEL
    return Place(folder, folder / _BASE if exact and number else start)


def round_name(number: int) -> str:
    """Return what a round's folder is called.

    >>> round_name(7)
    'round-0007'
    """
    return f"round-{number:04d}"


def newest_round(output: Path) -> int:
    """Return the last round that was written whole; 0 without any."""
    found = [int(path.name.partition("-")[2]) for path in (output / ROUNDS).glob("round-" + "[0-9]" * 4)]
    return max(found, default=0)


def read_round(place: Place) -> RoundRecord:
    """Return what stands in a round's folder.

    Raises:
        IntegrityError: the folder is damaged.
    """
    atomic.verify_folder(place.folder)
    return stored.read_record(place.folder / _ROUND, RoundRecord)


class Weights(Mapping[str, Tensor]):
    """The tensors of weight files, each read when it is asked for.

    Args:
        files: safetensors files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._open = [safe_open(path, "pt") for path in files]
        self._where = {name: file for file in self._open for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


@dataclass(frozen=True)
class Server:
    """What makes the next weights of those that clients returned.

    Args:
        optimizer: its rule.
        lora: the adapter; without a rank, whole models are averaged.
        lora_mean: how adapters are averaged.
        seed: of the adapter's first numbers.
        clients: how many there are, taking part or not.
    """

    optimizer: ServerOptimizer
    lora: LoraConfig
    lora_mean: str
    seed: int
    clients: int

    def write(self, final: Path, before: Place, runs: Sequence[Path], record: RoundRecord, steps: int) -> None:
        """Write a round's folder.

        Args:
            final: the folder.
            before: what the round began with.
            runs: run folders of the clients that returned.
            record: of the round, with their weights.
            steps: rounds before this one in which a client returned.

        Raises:
            IntegrityError: a client's files are not what it wrote.
            MachineError: the disk is full or may not be written.
        """
        for run in runs:
            atomic.verify_folder(run / MODEL)
        if self.lora.rank is not None:
            for run in runs:
                atomic.verify_folder(run / ADAPTER)
        fill = self._fill_adapters if self.lora.rank is not None else self._fill_models
        if not runs:
            fill = self._fill_same

        def filled(target: Path) -> None:
            found = fill(target, before, runs, record, steps)
            (target / _ROUND).write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")

        atomic.commit_folder(final, filled, {"kind": "round", "round": record.round})

    def _fill_same(
        self, target: Path, before: Place, runs: Sequence[Path], record: RoundRecord, steps: int
    ) -> RoundRecord:
        """Repeat what the round began with: no client returned."""
        for name in (MODEL, ADAPTER, _BASE):
            if (before.folder / name).is_dir():
                shutil.copytree(before.folder / name, target / name)
        if (before.folder / _SERVER).is_file():
            shutil.copyfile(before.folder / _SERVER, target / _SERVER)
        return replace(record, bytes_down=_sent(before, self.lora, self.lora_mean) * len(record.asked))

    def _fill_models(
        self, target: Path, before: Place, runs: Sequence[Path], record: RoundRecord, steps: int
    ) -> RoundRecord:
        """Average whole models, tensor by tensor."""
        files = open_folder(str(before.model)).files
        start, clients = Weights(files), [Weights(open_folder(str(run / MODEL)).files) for run in runs]
        state, found, after, moved = _state(before), dict[str, Tensor](), dict[str, Tensor](), 0.0
        for name in start:
            value = start[name]
            mean = weighted_mean([one[name] for one in clients], record.weights)
            moved += float((mean - value.double()).square().sum())
            new, moments = server_step(self.optimizer, {name: value}, {name: mean}, state, steps)
            found[name], after = new[name].to(value.dtype), after | moments
        _copy_settings(before.model, target / MODEL, files)
        save_file(found, target / MODEL / "model.safetensors", metadata={"format": "pt"})
        _save_state(target, after)
        each = _sent(before, self.lora, self.lora_mean)
        return replace(
            record, moved=moved**0.5, bytes_down=each * len(record.asked), bytes_up=each * len(record.returned)
        )

    def _fill_adapters(
        self, target: Path, before: Place, runs: Sequence[Path], record: RoundRecord, steps: int
    ) -> RoundRecord:
        """Average adapters, layer by layer, and write the model that they make."""
        start = load_file(before.adapter / ADAPTER_WEIGHTS)
        clients = [load_file(run / ADAPTER / ADAPTER_WEIGHTS) for run in runs]
        found, seen = self._averaged(start, clients, record.weights, _state(before), steps)
        (target / ADAPTER).mkdir()
        shutil.copyfile(before.adapter / "adapter_config.json", target / ADAPTER / "adapter_config.json")
        save_file(found, target / ADAPTER / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        _save_state(target, seen.state)
        model = load_model(str(before.base), device=_CPU, role="student")
        settings = self.lora.model_copy(update={"start": str(target / ADAPTER)})
        wrapped = attach(model.model, settings, seed=self.seed, name=str(before.base))
        if seen.residuals:
            change_frozen(wrapped, seen.residuals, alpha_of(self.lora) / (self.lora.rank or 1))
        save_student(replace(model, adapter=wrapped), target / MODEL)
        more = 0
        if self.lora_mean == "exact":
            save_student(replace(model, model=without_adapter(wrapped)), target / _BASE)
            more = residual_numbers(clients, pairs_of(start)) * _BYTES * self.clients
        each = _sent(before, self.lora, self.lora_mean)
        return replace(
            record, moved=seen.moved**0.5, gap=gap(seen.gaps), bytes_down=each * len(record.asked) + more,
            bytes_up=each * len(record.returned),
        )  # fmt: skip

    def _averaged(
        self,
        start: Mapping[str, Tensor],
        clients: Sequence[Mapping[str, Tensor]],
        weights: Sequence[int],
        state: Mapping[str, Tensor],
        steps: int,
    ) -> tuple[dict[str, Tensor], "_Seen"]:
        """Return the next adapter, and what was seen on the way."""
        found, seen = dict(start), _Seen()
        for pair in pairs_of(start):
            means = {name: weighted_mean([one[name] for one in clients], weights) for name in (pair.a, pair.b)}
            product = mean_product(clients, pair, weights)
            seen.gaps.append(squares(product, means[pair.a], means[pair.b]))
            self._average_pair(pair, start, means, product, state, steps, found, seen)
        return found, seen

    def _average_pair(
        self, pair: Pair, start: Mapping[str, Tensor], means: Mapping[str, Tensor], product: Tensor,
        state: Mapping[str, Tensor], steps: int, found: dict[str, Tensor], seen: "_Seen",
    ) -> None:  # fmt: skip
        """Put the next factors of one layer into what was found."""
        if self.lora_mean == "product":
            before = {pair.layer: start[pair.b].double() @ start[pair.a].double()}
            wanted = {pair.layer: product}
        else:
            names = (pair.b,) if self.lora_mean == "freeze_a" else (pair.a, pair.b)
            before = {name: start[name] for name in names}
            wanted = {name: means[name] for name in names}
        seen.moved += sum(float((mean - before[name].double()).square().sum()) for name, mean in wanted.items())
        new, moments = server_step(self.optimizer, before, wanted, state, steps)
        seen.state |= moments
        if self.lora_mean == "product":
            a, b = factorise(new[pair.layer], start[pair.a].shape[0])
            new = {pair.a: a, pair.b: b}
        for name, value in new.items():
            found[name] = value.to(start[name].dtype).contiguous()
        if self.lora_mean == "exact":
            seen.residuals[pair.layer] = product - found[pair.b].double() @ found[pair.a].double()


@dataclass
class _Seen:
    """What averaging adapters brings about besides the next one."""

    state: dict[str, Tensor] = field(default_factory=dict)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    residuals: dict[str, Tensor] = field(default_factory=dict)
    moved: float = 0.0


def weight_of(run: RunRecord, rows: int, by: str) -> int:
    """Return what a client counts: its rows, or the response tokens that it trained on."""
    return run.tokens if by == "tokens" else rows


def _sent(before: Place, lora: LoraConfig, lora_mean: str) -> int:
    """Return the bytes that go to a client, and back: all numbers that it trains."""
    if lora.rank is None:
        return _BYTES * sum(info.numel for info in open_folder(str(before.model)).tensors.values())
    start = load_file(before.adapter / ADAPTER_WEIGHTS)
    trained = [pair.b for pair in pairs_of(start)] if lora_mean == "freeze_a" else list(start)
    return _BYTES * sum(start[name].numel() for name in trained)


def _state(before: Place) -> dict[str, Tensor]:
    path = before.folder / _SERVER
    return load_file(path) if path.is_file() else {}


def _save_state(target: Path, state: dict[str, Tensor]) -> None:
    if state:
        save_file({name: value.contiguous() for name, value in state.items()}, target / _SERVER)


def _copy_settings(model: Path, target: Path, weights: Sequence[Path]) -> None:
    """Copy what a model folder holds besides its weights and their index."""
    names = {path.name for path in weights}

    def left_out(folder: Any, found: list[str]) -> list[str]:
        return [one for one in found if one in names or one.endswith(".index.json") or one == atomic.MANIFEST]

    shutil.copytree(model, target, ignore=left_out)
