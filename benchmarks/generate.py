"""Answers per second against transformers' ``generate``, on prompts and answers of a data set's lengths.

Run by hand, with a random model made by ``random_model.py``::

    python benchmarks/generate.py --model models/start --data dolly/dev.jsonl.gz --prompts 128

Both sides give every prompt an answer of the length that the data give it, so that they make the same tokens.
transformers takes the prompts in the order of the file, padded on the left, ``--batch`` at a time, and samples at
temperature 1 from the whole vocabulary. kd has as many rows at once, at most. Times alternate between the two.
Then kd answers each prompt for five seeds, with each prompt read once and with it read for every seed.
At ``--dtype bf16`` kd is also timed without reading any row again, which would leave answers to depend on their batch;
the difference is the price of the promise.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from kdcli.config.schema import DataConfig, GenerationConfig
from kdcli.data.dataset import load_dataset
from kdcli.end_tokens import EndTokens
from kdcli.generation.batch import RunningBatch
from kdcli.generation.batch_invariance import BatchInvariance
from kdcli.generation.decoder import Decoder
from kdcli.generation.sampling import SequenceState
from kdcli.models.load import LanguageModel, load_model


class GivenLengths(StoppingCriteria):
    """Ends each row of transformers' batch at its own length."""

    def __init__(self, width: int, lengths: Sequence[int]) -> None:
        self.width, self.lengths = width, torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """Return which rows are as long as they shall become."""
        return input_ids.shape[1] - self.width >= self.lengths.to(input_ids.device)


class Proposing(BatchInvariance):
    """Settles nothing: what the batch proposes stays."""

    def settle(self, row: SequenceState, place: int) -> None:
        """Open the next block of the row when this one is full."""
        if self.is_due(row):
            row.block += self.width(row)


class GivenBatch(RunningBatch):
    """kd's batch, with given lengths and no more rows than transformers has."""

    def __init__(
        self,
        decoder: Decoder,
        config: GenerationConfig,
        lengths: Sequence[int],
        most: int,
        *,
        settle: bool,
        reuse: bool,
    ) -> None:
        super().__init__(decoder, config, lambda tokens: None)
        self.reuse = reuse
        if not settle:
            self.settling = Proposing(decoder, config)
        self.given, self.most = lengths, most

    def may_go_on(self, row: SequenceState) -> bool:
        """Return whether the row is shorter than the length given to it."""
        return len(row.generated) < self.given[row.place]

    def _join(self, row: SequenceState) -> bool:
        """Read the prompt again where what was read of the row before is not to be used."""
        if not self.reuse:
            self._last_read = None
        return super()._join(row)

    def has_room(self, coming: SequenceState) -> bool:
        """Return whether fewer rows run than transformers has."""
        return len(self.rows) < self.most


def theirs(model: LanguageModel, prompts: Sequence[Sequence[int]], lengths: Sequence[int], batch: int) -> None:
    device = model.model.device
    for start in range(0, len(prompts), batch):
        rows, wanted = prompts[start : start + batch], lengths[start : start + batch]
        width = max(map(len, rows))
        ids = torch.tensor([[model.pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        out = model.model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=max(wanted), eos_token_id=None, pad_token_id=model.pad_id,
            stopping_criteria=StoppingCriteriaList([GivenLengths(width, wanted)]),
        )  # fmt: skip
        assert out.shape[1] == width + max(wanted)


def ours(
    model: LanguageModel, prompts: Sequence[Sequence[int]], lengths: Sequence[int], batch: int,
    seeds: Sequence[int] = (0,), *, reuse: bool = True, settle: bool = True,
) -> int:  # fmt: skip
    """Answer all prompts; return how many tokens were put right."""
    decoder = Decoder(model, model.vocab)
    config = GenerationConfig(max_new_tokens=max(lengths), batch_tokens=batch * (max(map(len, prompts)) + max(lengths)))
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))

    def rows() -> Iterator[SequenceState]:
        for place, seed in [(place, seed) for place in order for seed in seeds]:
            yield SequenceState.waiting(place, prompts[place], place, seed)

    with torch.no_grad():
        given = GivenBatch(decoder, config, lengths, batch, settle=settle, reuse=reuse)
        done = list(given.run(rows()))
    made = {(row.place, row.seed): len(row.generated) for row in done}
    assert made == {(place, seed): lengths[place] for place in order for seed in seeds}
    return 0 if given.settling is None else given.settling.repaired


def read(options: argparse.Namespace, model: LanguageModel) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return prompts, and the lengths of their answers, end token included."""
    config = DataConfig(max_length=options.max_length, skip_bad=True)
    data = load_dataset(options.data, model.tokenizer, config, ends=model.ends, limit=options.prompts, role="eval")
    prompts = [example.ids[: example.prompt_length] for example in data.examples]
    lengths = [min(len(example.ids) - example.prompt_length, options.max_new_tokens) for example in data.examples]
    return prompts, lengths


def timed(work: object, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    loaded = load_model(options.model, device=torch.device(options.device), role="teacher", dtype=dtype)
    model = replace(loaded, ends=EndTokens())
    prompts, lengths = read(options, loaded)
    few = slice(0, 4)
    theirs(model, prompts[few], lengths[few], options.batch)
    ours(model, prompts[few], lengths[few], options.batch)
    ways = {
        "transformers": lambda: theirs(model, prompts, lengths, options.batch),
        "kd": lambda: ours(model, prompts, lengths, options.batch),
    }
    if dtype is torch.bfloat16:
        ways["kd, nothing read again"] = lambda: ours(model, prompts, lengths, options.batch, settle=False)
        print(f"{ours(model, prompts, lengths, options.batch)} tokens put right")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, work in ways.items():
            times[name].append(timed(work, 1))
    seeds = tuple(range(options.seeds))
    several = {
        name: timed(lambda reuse=reuse: ours(model, prompts, lengths, options.batch, seeds, reuse=reuse), 1)
        for name, reuse in (("each prompt read once", True), ("each prompt read for each seed", False))
    }
    report(options, prompts, lengths, {name: statistics.median(found) for name, found in times.items()}, several)


def spread(lengths: Sequence[int]) -> str:
    return f"{statistics.mean(lengths):.0f} (median {statistics.median(lengths):.0f})"


def report(
    options: argparse.Namespace,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    times: dict[str, float],
    several: dict[str, float],
) -> None:
    total = sum(lengths)
    print(f"{len(prompts)} prompts of {spread([len(prompt) for prompt in prompts])} tokens")
    print(f"answers of {spread(lengths)} tokens, longest {max(lengths)}; batch {options.batch}, {options.dtype}")
    speeds = {name: total / seconds for name, seconds in times.items()}
    for name, speed in speeds.items():
        print(f"{name:32s} {speed:10.0f} tokens/s")
    print(f"{'kd / transformers':32s} {speeds['kd'] / speeds['transformers']:10.2f}")
    for name, seconds in several.items():
        print(f"{name:32s} {options.seeds * total / seconds:10.0f} tokens/s over {options.seeds} seeds")
    once, again = several.values()
    print(f"{'gain from reading once':32s} {again / once:10.2f}")
    print(json.dumps({"tokens": total, **times, **several}))


if __name__ == "__main__":
    main()
