"""A federation from end to end: one client is an ordinary run, means are those of what clients returned, and so on."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import study
import tiny
from kdcli.config.schema import CacheConfig, DistillConfig, FederateConfig
from kdcli.config.sections import DataConfig, EvalSettings, FederationConfig, LoraConfig
from kdcli.distill.run import distill
from kdcli.errors import (
    ExperimentChangedError,
    InputError,
    IntegrityError,
    InterruptedRunError,
    KDError,
    MachineError,
    NumericsError,
)
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import Event, silent
from kdcli.federated.federate import federate
from kdcli.federated.rounds import draw_clients
from kdcli.federated.server import weighted_mean
from kdcli.study.executors import local
from kdcli.study.verify import verify
from kdcli.teachers.load import cache
from shell import kd


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    made = study.Parts(tmp_path_factory.mktemp("federated"))
    rows = [json.loads(line) for line in made.train.read_text().splitlines()]
    text = "".join(json.dumps({**row, "kind": "abc"[at % 3]}) + "\n" for at, row in enumerate(rows))
    made.train.write_text(text)
    return made


def asked(parts, name, *, eval=False, lora=None, train=None, **federation):
    common = parts.common(**{"max_steps": 2, "lr": 2e-2, **(train or {})})
    return FederateConfig(
        **{key: common[key] for key in ("teacher", "student", "train", "hardware")},
        data=DataConfig(train=str(parts.train), eval=str(parts.test) if eval else None),
        lora=LoraConfig(rank=lora), output=str(parts.root / name),
        federation=FederationConfig(**{"clients": 3, "rounds": 1, **federation}),
    )  # fmt: skip


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("student", ["random:layers=1,width=8,heads=2", pytest.param("", marks=pytest.mark.full)])
def test_one_client_in_one_round_is_an_ordinary_training_bit_for_bit(parts, student):
    name, changes = f"one{len(student)}", {"student": student} if student else {}
    config = asked(parts, name, clients=1, train={"max_steps": 5}).model_copy(update=changes)
    found = federate(config, silent)
    run = distill(
        DistillConfig(
            **{key: getattr(config, key) for key in ("teacher", "student", "train", "hardware", "loss", "data")},
            output=str(parts.root / f"{name}-run"),
        ),
        silent,
    )
    assert same(weights(found.folder), weights(run.folder))
    client = found.folder / "clients" / "round-0001-client-00"
    assert (client / "metrics.jsonl").read_bytes() == (run.folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def three(parts):
    return federate(asked(parts, "three", eval=True, rounds=3, server="fedadam", bandwidth=8, keep=3), silent)


def test_a_round_is_the_mean_of_what_its_clients_returned(parts):
    found = federate(asked(parts, "mean", split="dirichlet:alpha=0.5,by=kind", weigh="tokens"), silent)
    runs = sorted((found.folder / "clients").iterdir())
    counts = [json.loads((run / "status.json").read_text())["tokens"] for run in runs]
    assert len(set(counts)) > 1
    assert found.rounds[1].weights == tuple(counts)
    clients = [weights(run) for run in runs]
    for name, value in weights(found.folder).items():
        assert torch.equal(value, weighted_mean([one[name] for one in clients], counts).float())


def test_the_lines_say_what_was_sent_and_how_good_the_student_is(three, parts):
    numbers = sum(value.numel() for value in weights(three.folder).values())
    told = lines(three.folder)
    assert [one["round"] for one in told] == [0, 1, 2, 3]
    assert all(one["bytes_up"] == one["bytes_down"] == 3 * 4 * numbers for one in told[1:])
    timing = [json.loads(line) for line in (three.folder / "timing.jsonl").read_text().splitlines()]
    assert timing[0]["communication_seconds"] == pytest.approx(2 * 3 * 4 * numbers * 8 / 8e6)
    for one, time in zip(three.rounds[1:], timing, strict=True):
        assert one.granularity == pytest.approx(time["compute_seconds"] / time["communication_seconds"])
        assert one.tokens_per_second == pytest.approx(one.tokens / time["compute_seconds"])
    measured = evaluate_run(
        parts.evaluation(three.model, teacher=None, evaluation=EvalSettings(metrics=("perplexity",))), silent
    )
    assert told[3]["perplexity"] == measured.estimates["perplexity"].mean


def test_the_student_is_an_ordinary_folder_and_everything_verifies(three):
    assert "federated" in (three.model / "README.md").read_text()
    origin = json.loads((three.model / "origin.json").read_text())
    assert [one["round"] for one in origin["rounds"]] == [0, 1, 2, 3]
    assert all(check.passed for check in verify(three.folder))


def test_more_rounds_may_follow_and_end_as_if_asked_for_at_once(parts, three):
    config = asked(parts, "later", eval=True, rounds=1, server="fedadam", bandwidth=8)
    federate(config, silent)
    more = config.model_copy(update={"federation": config.federation.model_copy(update={"rounds": 3})})
    found = federate(more, silent)
    assert same(weights(found.folder), weights(three.folder))
    assert (found.folder / "rounds.jsonl").read_bytes() == (three.folder / "rounds.jsonl").read_bytes()
    assert sorted(path.name for path in (found.folder / "rounds").iterdir()) == ["round-0002", "round-0003"]
    with pytest.raises(KDError, match=r"FED-02.*3 rounds are done, and 1 are asked for.*give --rounds 3"):
        federate(config, silent)


def test_the_same_line_again_trains_and_measures_nothing(parts, three, monkeypatch):
    monkeypatch.setattr("kdcli.training.trainer.train", lambda job: pytest.fail("trains"))
    monkeypatch.setattr("kdcli.distill.run.train", lambda job: pytest.fail("trains"))
    config = asked(parts, "three", eval=True, rounds=3, server="fedadam", bandwidth=8, keep=3)
    before = {path: path.stat().st_mtime_ns for path in three.folder.rglob("*.safetensors")}
    assert federate(config, silent).rounds == three.rounds
    assert {path: path.stat().st_mtime_ns for path in three.folder.rglob("*.safetensors")} == before


def test_a_signal_within_a_round_is_gone_on_from(parts, three):
    config = asked(parts, "stopped", eval=True, rounds=3, server="fedadam", bandwidth=8, train={"log_every": 1})

    def stop(event: Event) -> None:
        if event.kind == "cell" and event.message.startswith("round 2, client 1") and event.done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="go on with: kd federate again"):
        federate(config, stop, command="kd federate again")
    assert (parts.root / "stopped" / "clients" / "round-0002-client-00" / "model").is_dir()
    found = federate(config, silent)
    assert same(weights(found.folder), weights(three.folder))
    assert (found.folder / "rounds.jsonl").read_bytes() == (three.folder / "rounds.jsonl").read_bytes()


def failing(monkeypatch, error, client):
    real = local.distill

    def work(config, *rest, **more):
        if config.output.endswith(client):
            raise error
        return real(config, *rest, **more)

    monkeypatch.setattr(local, "distill", work)


def test_a_client_whose_numbers_fail_is_left_out_and_the_weights_are_those_of_the_others(parts, monkeypatch):
    failing(monkeypatch, NumericsError("NUM-01", "loss is nan", fix="lower --lr"), "client-01")
    heard = study.Heard()
    found = federate(asked(parts, "died"), heard)
    (_, one) = found.rounds
    assert (one.returned, one.failed, one.weights) == ((0, 2), (1,), (8, 8))
    assert any("2 of 3 clients returned" in text for text in heard.messages("warning"))
    clients = [weights(found.folder / "clients" / f"round-0001-client-0{at}") for at in (0, 2)]
    for name, value in weights(found.folder).items():
        assert torch.equal(value, weighted_mean([one[name] for one in clients], [8, 8]).float())


def test_any_other_failure_stops_the_federation_and_the_same_line_goes_on(parts, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, MachineError("DISK-01", "the disk is full"), "client-01")
        with pytest.raises(MachineError, match=r"1 of 3 clients of round 1 failed; the first: .*disk is full"):
            federate(asked(parts, "full"), silent)
        kept = asked(parts, "lenient", without_failed=True)
        assert federate(kept, silent).rounds[1].returned == (0, 2)
    assert federate(asked(parts, "full"), silent).rounds[1].returned == (0, 1, 2)


def test_clients_are_drawn_by_the_seed_and_a_round_without_any_leaves_the_weights(parts):
    draws = [draw_clients(3, number, 10, 0.5, 0.4) for number in range(1, 200)]
    assert draws == [draw_clients(3, number, 10, 0.5, 0.4) for number in range(1, 200)]
    assert draws[0] != draw_clients(4, 1, 10, 0.5, 0.4)
    assert {len(one.asked) for one in draws} == {5}
    assert sum(len(one.lost) for one in draws) / (199 * 5) == pytest.approx(0.4, abs=0.05)
    seed = next(seed for seed in range(500) if not draw_clients(seed, 1, 3, 0.4, 0.5).working)
    config = asked(parts, "nobody", fraction=0.4, drop=0.5, train={"seed": seed})
    found = federate(config, silent)
    assert (found.rounds[1].returned, found.rounds[1].bytes_up) == ((), 0)
    assert found.rounds[1].bytes_down > 0
    assert same(weights(found.folder), weights(found.folder / "start"))


def effective(found, mean):
    """The greatest distance of a round's weights from W0 + mean(B A), and how far the update itself goes."""
    scale = 2.0
    start, after = weights(found.folder / "start"), weights(found.folder / "rounds" / "round-0001")
    adapters = [
        load_file(run / "adapter" / "adapter_model.safetensors") for run in sorted((found.folder / "clients").iterdir())
    ]
    off = moved = 0.0
    for name in adapters[0]:
        if ".lora_A." in name:
            layer = name.split(".lora_A.")[0].removeprefix("base_model.model.") + ".weight"
            products = [one[name.replace("lora_A", "lora_B")].double() @ one[name].double() for one in adapters]
            update = scale * weighted_mean(products, found.rounds[1].weights)
            update = update if start[layer].shape == update.shape and "c_" not in layer else update.T
            off = max(off, float((after[layer].double() - start[layer].double() - update).abs().max()))
            moved = max(moved, float(update.abs().max()))
    return off, moved


@pytest.mark.parametrize(
    "mean, family",
    [
        ("factors", "llama"),
        ("exact", "gpt2"),
        ("freeze_a", "llama"),
        pytest.param("exact", "llama", marks=pytest.mark.full),
        pytest.param("product", "llama", marks=pytest.mark.full),
    ],
)
def test_which_means_of_adapters_are_the_mean_of_the_updates(parts, mean, family, tmp_path):
    student = tiny.folder(tmp_path / "student", family, seed=2)
    config = asked(parts, f"{mean}-{family}", lora=2, lora_mean=mean, train={"max_steps": 6, "lr": 0.1})
    found = federate(config.model_copy(update={"student": str(student)}), silent)
    off, moved = effective(found, mean)
    assert moved > 0.05
    if mean in ("exact", "freeze_a"):
        assert off < 1e-6
    else:
        assert off > 1e-4
    assert found.rounds[1].gap == pytest.approx(0, abs=1e-12) if mean == "freeze_a" else found.rounds[1].gap > 1e-3


@pytest.mark.full
def test_a_second_round_begins_with_the_adapter_of_the_first_and_charges_what_is_sent(parts):
    found = federate(asked(parts, "chain", lora=2, lora_mean="exact", rounds=2, keep=2), silent)
    client = found.folder / "clients" / "round-0002-client-00"
    config = (client / "config.yaml").read_text()
    assert "round-0001/base" in config
    assert "round-0001/adapter" in config
    adapter = load_file(found.folder / "rounds" / "round-0001" / "adapter" / "adapter_model.safetensors")
    numbers = sum(value.numel() for value in adapter.values())
    residuals = sum(
        min(2 * 2 * (a.shape[1] + b.shape[0]), a.shape[1] * b.shape[0])
        for name, a in adapter.items() if ".lora_A." in name
        for b in [adapter[name.replace("lora_A", "lora_B")]]
    )  # fmt: skip
    assert found.rounds[2].bytes_up == 3 * 4 * numbers
    assert found.rounds[2].bytes_down == 3 * 4 * (numbers + residuals)


def test_another_federation_and_damage_are_refused(parts, tmp_path):
    config = asked(parts, "mine")
    found = federate(config, silent)
    other = config.model_copy(update={"federation": config.federation.model_copy(update={"server": "fedavgm"})})
    with pytest.raises(ExperimentChangedError, match="server was"):
        federate(other, silent)
    path = found.folder / "rounds" / "round-0001" / "model" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError):
        federate(config, silent)


LINE = "federate --teacher teacher --student student --data train.jsonl --device cpu --max-steps 1 --rounds 1 -o wrong"


@pytest.mark.parametrize(
    ("more", "code", "exit_code", "said"),
    [
        ("--clients 25", "ROWS-05", 3, "1 of 25 parts would be empty: 24 rows, 24 prompts. Fix: cut fewer parts"),
        ("--clients 3 --split dirichlet:alpha=0,by=kind", "CLI-06", 2, "alpha must lie in (0, 1e+06], got 0"),
        (
            "--clients 3 --split dirichlet:by=colour",
            "ROWS-04",
            3,
            'column "colour" has no value to split by. Fix: name',
        ),
        ("--clients 24 --split dirichlet:alpha=0.01,by=kind", "ROWS-05", 3, "Fix: raise alpha"),
        ("--clients 3 --split shards", "CLI-06", 2, '--split: "shards" is no way to cut rows. Fix: give iid'),
        ("--split column:kind --clients 4", "CLI-09", 2, "the column has 3 values, and each is a client. Fix: leave"),
        (
            "--clients 3 --fraction 0",
            "CLI-05",
            2,
            '--fraction: must be a number > 0 and <= 1, got "0". Fix: the default',
        ),
        ("--clients 3 --drop 1", "CLI-05", 2, '--drop: must be a number >= 0 and < 1, got "1". Fix: the default'),
        ("--clients 3 --server sgd", "CLI-06", 2, '--server: "sgd" is no server optimizer. Fix: give fedavg'),
        ("--clients 3 --lora-mean exact", "CLI-09", 2, "has no effect without an adapter. Fix: add --lora 8"),
        ("--clients 3 --lora 2 --lora-mean mean", "CLI-06", 2, "--lora-mean"),
        ("--clients 3 --lora 2 --student random:layers=1,width=8,heads=2", "LORA-01", 2, "would leave them random"),
        ("--clients 3 --student http://127.0.0.1:9/v1", "", (2, 3), "Fix: "),
        (
            "--clients 3 --student supernet:widths=0.5+1",
            "CLI-09",
            2,
            "clients train one size, and a supernet is several",
        ),
        ("--clients 3 --student teacher", "", (2, 3), "Fix: "),
        ("--clients 3 --loss fkk", "", 2, "did you mean fkl?"),
        (
            "--clients 3 --eval-limit 3",
            "CLI-09",
            2,
            "--eval-limit: has no effect without held-out rows. Fix: add --eval-data",
        ),
    ],
)
def test_what_cannot_be_a_federation_is_one_line_with_a_fix_and_writes_no_model(parts, more, code, exit_code, said):
    answer = kd(*LINE.split(), *more.split(), folder=parts.root)
    (line,) = answer.error_lines
    assert code in line
    assert said in line
    assert answer.code == exit_code if isinstance(exit_code, int) else answer.code in exit_code
    assert not (parts.root / "wrong").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(parts):
    (parts.root / "taken").mkdir()
    (parts.root / "taken" / "notes.txt").write_text("mine")
    answer = kd(*LINE.replace("wrong", "taken").split(), "--clients", "2", folder=parts.root)
    assert answer.code == 2
    assert "FED-01" in answer.err
    assert "choose another -o" in answer.err
    assert sorted(path.name for path in (parts.root / "taken").iterdir() if path.name[0] != ".") == ["notes.txt"]


def test_an_adapter_of_another_form_is_refused(parts):
    run = parts.run("adapted", max_steps=1).model_copy(
        update={"lora": LoraConfig(rank=2, keep=True), "data": DataConfig(train=str(parts.train))}
    )
    start = str(distill(run, silent).folder / "adapter")
    for lora, said in (
        ({"rank": 3, "start": start}, "is not as this adapter needs it"),
        ({"rank": 2, "start": "no"}, "no adapter_model"),
    ):
        wrong = run.model_copy(update={"lora": LoraConfig(**lora), "output": str(parts.root / "other")})
        with pytest.raises(InputError, match=f"LORA-04.*{said}"):
            distill(wrong, silent)
    again = run.model_copy(update={"lora": LoraConfig(rank=2, start=start), "output": str(parts.root / "another")})
    identity = distill(again, silent).identity
    assert len(identity["lora.start"]) == 64
    assert "lora.freeze_a" not in identity


@pytest.mark.full
def test_a_cache_of_all_rows_serves_every_client(parts):
    common = {"teacher": str(parts.teacher), "hardware": parts.common()["hardware"]}
    made = CacheConfig(**common, data=DataConfig(train=str(parts.train)), output=str(parts.root / "cache"))
    cache(made, silent)
    found = federate(asked(parts, "cached").model_copy(update={"teacher_cache": made.output}), silent)
    assert same(weights(found.folder), weights(federate(asked(parts, "live"), silent).folder))


@pytest.mark.full
def test_the_command_of_the_page_works(parts):
    page = (Path(__file__).parents[2] / "docs" / "federated.md").read_text(encoding="utf-8")
    (line,) = [one for one in page.splitlines() if one.startswith("kd federate ")]
    for name, there in (("T", "teacher"), ("S", "student")):
        (parts.root / name).symlink_to(there)
    answer = kd(*line.replace("by=category", "by=kind").split()[1:], "--device", "cpu", folder=parts.root)
    assert answer.code == 0, answer.err
    assert (parts.root / "fl" / "model" / "model.safetensors").is_file()
    assert "granularity" not in answer.out
    assert all(f"{one['perplexity']:.5g}" in answer.out for one in lines(parts.root / "fl"))


@pytest.mark.full
def test_clients_that_run_elsewhere_return_the_same(parts):
    config = asked(parts, "here", rounds=2)
    hardware = config.hardware.model_copy(update={"threads": 1})
    here = federate(config.model_copy(update={"hardware": hardware}), silent)
    jobs = config.execution.model_copy(update={"jobs": 2})
    elsewhere = config.model_copy(
        update={"hardware": hardware, "execution": jobs, "output": str(parts.root / "elsewhere")}
    )
    assert same(weights(federate(elsewhere, silent).folder), weights(here.folder))
