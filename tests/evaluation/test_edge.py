"""What a model costs on this machine: sizes by hand, times by a clock that is told what to say."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from kdcli.config.schema import DataConfig, EdgeConfig, EvalConfig, EvalSettings, HardwareConfig
from kdcli.errors import InputError
from kdcli.evaluation import edge
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.results import read_results
from kdcli.events import silent
from kdcli.models.devices import Device, prepare
from shell import kd
from study import Heard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("edge") / "model", seed=1)


@pytest.fixture(scope="module")
def device():
    return prepare(HardwareConfig(device="cpu"))


def measured(folder, device, report=silent, **settings):
    config = EdgeConfig(**{"measure": True, "prompt_tokens": 4, "new_tokens": 5, "repeats": 3, **settings})
    return edge.measure_edge(str(folder), config, device, report)


def test_sizes_are_those_of_the_file(folder, device):
    tensors = load_file(folder / "model.safetensors")
    found = measured(folder, device)
    assert found.parameters == sum(one.numel() for one in tensors.values())
    assert found.bytes_by_dtype == {"F32": 4 * found.parameters}
    assert found.disk_bytes == (folder / "model.safetensors").stat().st_size
    rows = {name: one.shape[0] if one.dim() == 2 else 0 for name, one in tensors.items()}
    assert found.int8_bytes == sum(
        one.numel() + 4 * rows[name] if rows[name] else 4 * one.numel() for name, one in tensors.items()
    )


def test_dtypes_are_told_apart(folder, device, tmp_path):
    tiny.folder(tmp_path / "mixed", seed=1)
    tensors = load_file(tmp_path / "mixed" / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file({**tensors, name: tensors[name].bfloat16()}, tmp_path / "mixed" / "model.safetensors", {"format": "pt"})
    found = measured(tmp_path / "mixed", device)
    assert found.bytes_by_dtype["BF16"] == 2 * tensors[name].numel()
    assert found.int8_bytes == measured(folder, device).int8_bytes


def test_medians_and_ranges_of_what_the_clock_says(folder, device, monkeypatch):
    lasting = [(9.0, 9.0), (0.1, 4.0), (0.3, 2.0), (0.2, 1.0)]  # the first answer warms up
    ticks = itertools.accumulate(itertools.chain.from_iterable((100.0, first, rest) for first, rest in lasting))
    monkeypatch.setattr(edge, "_now", lambda device: next(ticks))
    found = measured(folder, device)
    assert found.first_token_seconds == pytest.approx(0.2)
    assert found.first_token_range == pytest.approx((0.1, 0.3))
    assert found.tokens_per_second == pytest.approx(2.0)  # four tokens after the first in two seconds
    assert found.tokens_per_second_range == pytest.approx((1.0, 4.0))


def test_tokens_are_added_one_at_a_time_to_a_cache(folder, device, monkeypatch):
    widths = []
    real = edge.trunk_of

    def spied(model):
        trunk = real(model)

        def forward(input_ids, **options):
            widths.append(input_ids.shape[1])
            return trunk(input_ids=input_ids, **options)

        return forward

    monkeypatch.setattr(edge, "trunk_of", spied)
    measured(folder, device, repeats=1)
    assert widths == [4, 1, 1, 1, 1] * 2


class Meter:
    source = "made up"

    def joules(self):
        return 30.0


def test_energy_is_shared_among_all_tokens_of_the_repeats(folder, device, monkeypatch):
    monkeypatch.setattr(edge, "energy_meter", lambda device: Meter())
    found = measured(folder, device)
    assert (found.joules_per_token, found.energy_source) == (pytest.approx(2.0), "made up")


def test_energy_that_nobody_reports_is_unknown(folder, device, monkeypatch):
    monkeypatch.setattr(edge, "energy_meter", lambda device: None)
    found = measured(folder, device)
    assert (found.joules_per_token, found.energy_source) == (None, "")


def test_progress_counts_repeats(folder, device):
    heard = Heard()
    measured(folder, device, heard)
    assert [event.done for event in heard.events if event.kind == "progress"] == [1, 2, 3]


def test_weights_are_held_in_the_dtype_of_the_computation(folder):
    half = Device(torch.device("cpu"), torch.bfloat16, "cpu")
    assert measured(folder, half).hardware.endswith("threads, bfloat16")


def test_a_context_too_short_is_one_line(folder, device):
    with pytest.raises(InputError, match="133 tokens do not fit the model's context of 128") as caught:
        measured(folder, device, prompt_tokens=128)
    assert caught.value.code == "EDGE-01"


def test_edge_costs_stand_with_the_scores_and_read_back(folder, tmp_path):
    config = EvalConfig(
        model=str(folder),
        data=DataConfig(eval=str(tiny.rows(tmp_path / "test.jsonl", 4))),
        hardware=HardwareConfig(device="cpu"),
        evaluation=EvalSettings(metrics=("perplexity",)),
        edge=EdgeConfig(measure=True, prompt_tokens=4, new_tokens=3, repeats=1),
        output=str(tmp_path / "out"),
    )
    record = evaluate_run(config, silent)
    assert read_results(tmp_path / "out") == record
    assert record.edge is not None


def test_the_command_needs_no_rows(folder):
    short = ("--set", "edge.new_tokens=3", "--set", "edge.prompt_tokens=4", "--set", "edge.repeats=1")
    said = kd("eval", str(folder), "--edge", *short, "--set", "hardware.device=cpu")
    assert said.code == 0, said.err
    for cost in ("parameters", "on disk as int8", "peak memory", "first token", "tokens per second", "energy"):
        assert cost in said.out
    told = kd("eval", str(folder), "--edge", *short, "--json", "--set", "hardware.device=cpu")
    assert json.loads(told.out)["edge"]["repeats"] == 1
