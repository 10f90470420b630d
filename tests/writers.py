"""The commands that write durable folders, small, as pieces of work that faults and losses of power are tried on."""

import json
import shutil

import exported
import faults
import markov
from kdcli.config.schema import (
    BalanceConfig,
    CacheConfig,
    DataConfig,
    ExportConfig,
    FederateConfig,
    GenerationConfig,
    StudentConfig,
)
from kdcli.config.sections import FederationConfig
from kdcli.distill.make_export import make_export
from kdcli.distill.make_student import make_student
from kdcli.distill.run import distill
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import silent
from kdcli.federated.federate import federate
from kdcli.rows.balance import balance
from kdcli.storage.digests import write_digests
from kdcli.study import results
from kdcli.study.compare import compare
from kdcli.teachers import cache_build
from kdcli.teachers.load import cache

_SHORT = {"max_steps": 3, "save_every": 1, "keep": 1}


def make_small(monkeypatch):
    """Several shards in a small cache, and no picture, which other tests draw."""
    monkeypatch.setattr(cache_build, "_SHARD_BYTES", 600)
    monkeypatch.setattr(cache_build, "_MICRO_TOKENS", 64)
    monkeypatch.setattr(results, "publish", lambda folder, *rest: write_digests(folder))


def warm(parts):
    """Import once what the forks need."""
    distill(_asked(parts.run("warm", **_SHORT)), silent)


def _asked(config):
    evaluation = config.evaluation.model_copy(
        update={"metrics": ("rougeL", "perplexity"), "generation": GenerationConfig(max_new_tokens=2)}
    )
    return config.model_copy(update={"evaluation": evaluation})


def work_of(parts, name):
    """A piece of work by name, in a folder of its own."""
    root, beside = parts.root / f"{name}-root", parts.root / f"{name}-beside"
    for folder in (root, beside):
        shutil.rmtree(folder, ignore_errors=True)
    if name == "distill":
        config = _asked(parts.run(root.name, **_SHORT))
        return faults.Work(root, lambda: distill(config, silent), beside)
    if name == "compare":
        settings = _asked(parts.study("fkl", "ce", name=root.name, **_SHORT | {"max_steps": 2}))
        return faults.Work(root, lambda: compare(settings, silent, repeat="kd compare"), beside)
    if name == "federate":
        asked_for = FederateConfig(
            teacher=str(parts.teacher), student=str(parts.student), data=parts.data(), output=str(root),
            hardware=parts.common()["hardware"], train=parts.common(**_SHORT | {"max_steps": 2})["train"],
            federation=FederationConfig(clients=2, rounds=2, server="fedadam", keep=1),
        )  # fmt: skip
        return faults.Work(root, lambda: federate(asked_for, silent), beside)
    if name == "eval":
        made = faults.Work(root, lambda: distill(parts.run(root.name, **_SHORT), silent), beside / "made")
        assert made.attempt()["code"] == 0
        measured = _asked(parts.evaluation(root))
        return faults.Work(root, lambda: evaluate_run(measured, silent), beside)
    if name == "student":
        root.mkdir()
        asked_for = StudentConfig(
            student="cut:layers=1,ffn=8,by=activation,sparse=0.5,method=sparsegpt",
            teacher=str(parts.teacher), output=str(root / "made"),
            data=parts.data().model_copy(update={"limit": 8}), hardware=parts.common()["hardware"],
        )  # fmt: skip
        return faults.Work(root, lambda: make_student(asked_for, silent), beside)
    if name == "export":
        root.mkdir()
        wanted = ExportConfig(
            model=str(exported.folder(parts.root / "source")), to="gguf:q4_0", output=str(root / "made"),
            data=parts.data().model_copy(update={"limit": 4}), hardware=parts.common()["hardware"],
        )  # fmt: skip
        return faults.Work(root, lambda: make_export(wanted, silent), beside)
    if name == "balance":
        root.mkdir()
        table = [{"prompt": f"q{at}", "completion": "r9", "kind": "aaaab"[at % 5]} for at in range(15)]
        (parts.root / "kinds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        chosen = BalanceConfig(
            by="kind", policy="balanced", budget=12, tail="write", tries=2, source="teacher:max_new_tokens=8",
            teacher=str(markov.folder(parts.root / "markov")), output=str(root / "made"),
            data=DataConfig(train=str(parts.root / "kinds.jsonl")), hardware=parts.common()["hardware"],
        )  # fmt: skip
        return faults.Work(root, lambda: balance(chosen, silent), beside)
    kind = {"cache": {}, "compact": {"kind": "compact", "top_k": 4}}[name]
    data = parts.data().model_copy(update={"limit": 8, "eval": None})
    common = {"teacher": str(parts.teacher), "data": data, "hardware": parts.common()["hardware"]}
    settings = CacheConfig(**common, output=str(root), **kind)
    return faults.Work(root, lambda: cache(settings, silent), beside)
