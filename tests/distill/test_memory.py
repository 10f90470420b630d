"""The prediction of memory against what processes hold, and against closed forms."""

from dataclasses import dataclass, field, replace

import pytest
import torch

import memory
import tiny
from kdcli.distill.gpu_memory import needed, way_to_fit
from kdcli.distill.memory import Setup, moments, peak_of
from kdcli.distill.plan import pointwise
from kdcli.losses.build import build_objective
from kdcli.models.adapters import quantize
from kdcli.models.packing import Workspace
from kdcli.models.sizes import Footprint, sizes_of

CPU = torch.device("cpu")
LLAMA = {"family": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = LLAMA | {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3}
LARGE = LLAMA | {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3}
GPT2 = {"family": "gpt2", "n_embd": 128, "n_head": 4, "n_layer": 3}


@dataclass(frozen=True)
class Case:
    """One training that is measured and predicted."""

    shard: str = "ddp"
    dtype: str = "fp32"
    checkpointing: bool = False
    loss: str = "fkl"
    rows: int = 4
    length: int = 64
    micro_batches: int = 1
    rank: int | None = None
    student: dict = field(default_factory=lambda: SMALL)
    teacher: dict = field(default_factory=lambda: LARGE)

    def __str__(self) -> str:
        kept = "recomputed" if self.checkpointing else "kept"
        return f"{self.shard}-{self.dtype}-{kept}-{self.student['family']}-{self.micro_batches}-{self.rank}"


def predicted(case: Case, processes: int) -> dict[str, dict[str, int]]:
    half = case.dtype == "bf16"
    student, teacher = (
        sizes_of(
            tiny.model(vocab=memory.VOCAB, **given).config, rows=case.rows, length=case.length, keep=True,
            autocast=torch.bfloat16 if half else None,
        )
        for given in (case.student, case.teacher)
    )  # fmt: skip
    loss, space = build_objective(case.loss), Workspace()
    chunk = space.chunk(memory.VOCAB, CPU)
    setup = Setup(
        case.shard, processes, case.rows, case.length, case.micro_batches > 1, case.checkpointing, half, memory.VOCAB,
        chunk, space.block(memory.VOCAB, CPU, chunk), pointwise(loss) + 2 * half, rank=case.rank,
        alone=case.shard == "ddp",
    )  # fmt: skip
    return moments(student, teacher, setup)


CASES = [
    Case("ddp", "fp32"),
    Case("ddp", "bf16", checkpointing=True),
    Case("fsdp2", "fp32", checkpointing=True),
    Case("fsdp2", "bf16"),
    Case("zero3", "fp32"),
]
MORE = [
    Case("ddp", "fp32", checkpointing=True),
    Case("ddp", "bf16"),
    Case("fsdp2", "fp32"),
    Case("fsdp2", "bf16", checkpointing=True),
    Case("zero3", "bf16", checkpointing=True),
    Case("ddp", micro_batches=2, student=GPT2, teacher=GPT2),
    Case("fsdp2", "bf16", checkpointing=True, student=GPT2, teacher=GPT2),
    Case("fsdp2", micro_batches=2),
    Case("fsdp2", checkpointing=True, rank=4),
    Case("ddp", "bf16", rank=4, rows=8),
    Case("fsdp2", "bf16", student=SMALL | {"hidden_size": 256}, teacher=LARGE | {"hidden_size": 384}, rows=2),
    Case("ddp", "fp32", loss="jsd", rows=16, student=GPT2, teacher=GPT2),
]


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.full) for case in MORE)], ids=str)
def test_every_process_holds_what_is_predicted(tmp_path, case):
    found, expected = memory.measured(tmp_path / "run", case, 2), predicted(case, 2)
    total = {name: sum(parts.values()) for name, parts in expected.items()}
    start, end = expected["the student's forward"], expected["the end of the backward"]
    forward = max(total[name] for name in ("the student's forward", "the teacher's forward", "head and loss"))
    backward = max(total["the backward"], total["the end of the backward"])
    standing = sum(value for name, value in start.items() if name not in ("gathered from the shards", "gradients"))
    for one in found:
        assert standing == pytest.approx(one["standing"], rel=0.02)
        assert end["gradients"] == pytest.approx(one["gradients"], rel=0.02)
        assert end["AdamW's moments"] == pytest.approx(one["moments"], rel=0.02)
        assert forward == pytest.approx(one["forward"], rel=0.2)
        assert backward == pytest.approx(one["backward"], rel=0.2)


SEVEN = Footprint(
    parameters=7 * 10**9, head=10**8, tied=False, linear=10**7, rows=5 * 10**6, weights=68 * 10**8, matrix=10**8,
    width=4096, layers=32, blocks=68 * 10**8, block=68 * 10**8 // 32, activations=0, inner=0,
)  # fmt: skip
ALONE = Setup(
    "ddp", 1, 1, 1, accumulates=False, checkpointing=False, half=False, vocab=1, chunk=1, block=1, pointwise=0.0
)


def part(setup: Setup, name: str, teacher: Footprint | None = None) -> int:
    return moments(SEVEN, teacher, setup)["the end of the backward"].get(name, 0)


def test_adamw_in_fp32_takes_sixteen_bytes_a_parameter_and_ddp_four_more():
    alone = peak_of(SEVEN, None, ALONE)
    assert alone.moment == "the end of the backward"
    assert alone.total == pytest.approx(16 * SEVEN.parameters, rel=1e-6)
    several = peak_of(SEVEN, None, replace(ALONE, processes=8))
    assert several.total == pytest.approx(20 * SEVEN.parameters, rel=1e-6)


@pytest.mark.parametrize("shard", ["fsdp2", "zero3"])
def test_shards_divide_weights_gradients_and_moments(shard):
    cut = replace(ALONE, shard=shard, processes=8)
    for name in ("student's weights", "gradients", "AdamW's moments"):
        assert part(cut, name) == part(ALONE, name) // 8
    assert part(cut, "teacher's weights", SEVEN) == 4 * SEVEN.parameters // 8
    assert part(cut, "buckets of gradients") == 0


def test_an_adapter_has_gradients_and_moments_of_its_own_size():
    adapted = replace(ALONE, rank=16)
    assert part(adapted, "gradients") == 4 * 16 * SEVEN.linear
    assert part(adapted, "AdamW's moments") == 8 * 16 * SEVEN.linear


def test_a_rounded_teacher_takes_a_byte_or_half_of_one_for_each_weight():
    weights = {
        kind: part(replace(ALONE, quantization=kind), "teacher's weights", SEVEN) for kind in ("none", "int8", "nf4")
    }
    rest = 4 * (SEVEN.parameters - SEVEN.weights)
    assert weights["none"] == 4 * SEVEN.parameters
    assert weights["int8"] == SEVEN.weights + 4 * SEVEN.rows + rest
    assert weights["nf4"] - rest == pytest.approx(0.516 * SEVEN.weights, rel=1e-3)
    assert part(replace(ALONE, remembered=True), "teacher's weights", SEVEN) == 4 * SEVEN.head


@pytest.mark.parametrize("kind, library", [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_the_bytes_of_a_rounded_teacher_are_those_of_the_library(kind, library):
    pytest.importorskip(library)
    model = tiny.model("llama", vocab=64, hidden_size=256, intermediate_size=512)
    sizes = sizes_of(model.config)
    quantize(model, kind, CPU)
    held = sum(_storage(one) for one in [*model.parameters(), *_scales(model)])
    expected = moments(sizes, sizes, replace(ALONE, quantization=kind))["head and loss"]["teacher's weights"]
    assert expected == pytest.approx(held, rel=0.02)


def _storage(tensor) -> int:
    inner = [getattr(tensor, name) for name in getattr(tensor, "tensor_data_names", ())]
    return sum(_storage(one) for one in inner) if inner else tensor.numel() * tensor.element_size()


def _scales(model):
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            yield state.absmax
            yield from [state.state2.absmax] if state.nested else []


def test_recomputed_activations_leave_the_inputs_of_the_layers():
    sizes = replace(SEVEN, activations=10**9, inner=3 * 10**7)
    setup = replace(ALONE, rows=4, length=512)
    hidden = 4 * 512 * 4096 * 4
    kept, recomputed = (
        moments(sizes, None, replace(setup, checkpointing=on))["head and loss"]["activations"] for on in (False, True)
    )
    assert kept == 10**9 + hidden
    assert recomputed == 32 * hidden + (10**9 - 32 * 3 * 10**7) + hidden


def test_a_way_to_fit_is_one_that_fits_and_the_gentlest():
    sizes = replace(SEVEN, activations=200 * 2**30, inner=6 * 2**30)
    setup = replace(ALONE, processes=8, rows=8, length=512, shard="fsdp2", vocab=32000, chunk=4096, block=4096)
    memory_of_one = 80 * 2**30
    assert needed(peak_of(sizes, None, setup).total) > memory_of_one
    way = way_to_fit(sizes, None, setup, memory_of_one)
    assert way is not None
    assert way.flags == "--gradient-checkpointing"
    assert way.total == needed(peak_of(sizes, None, replace(setup, checkpointing=True)).total) <= memory_of_one
    assert way_to_fit(sizes, None, setup, 2**30, adapts=False) is None


def test_logits_kept_wider_than_their_matrices_have_a_gradient_of_their_own():
    half = replace(ALONE, half=True, chunk=64, vocab=1000, rows=64)
    logits = [
        moments(SEVEN, SEVEN, setup)["the student's forward"]["logits"] for setup in (half, replace(half, wide=True))
    ]
    assert logits == [64_000 * 2 * 2, 64_000 * (2 * 4 + 2)]


@pytest.mark.parametrize("shard, processes", [("ddp", 1), ("ddp", 2), ("fsdp2", 4)])
def test_kept_zeros_take_a_byte_for_each_weight_of_the_linear_layers_at_most(shard, processes):
    kept = replace(ALONE, shard=shard, processes=processes, keep_zeros=True)
    assert part(kept, "places of kept zeros") == SEVEN.weights // kept.shards
    assert part(replace(kept, keep_zeros=False), "places of kept zeros") == 0
