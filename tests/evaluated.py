"""Finished, evaluated runs with made-up scores: everything a comparison is computed from, without a model."""

import json
from pathlib import Path

import numpy as np

from kdcli.comparison.aggregate import Group
from kdcli.config.schema import EvalSettings, GenerationConfig
from kdcli.distill.records import RunRecord
from kdcli.evaluation.answers import TextSamples
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.evaluation.results import Rows, write_results
from kdcli.evaluation.scoring import build_metrics
from kdcli.metrics.score import Score
from kdcli.statistics import over_examples

EXAMPLES = 24
SETTINGS = EvalSettings(metrics=("rougeL", "perplexity"), generation=GenerationConfig(seeds=(1, 2, 3)))


def groups(root: Path, labels=("fkl", "rkl", "akl"), seeds=(0, 1, 2), gains=(0.0, 0.0, 0.5), answer="an answer"):
    """Runs of each label and seed; ``gains`` makes a label's scores better."""
    made = []
    for index, (label, gain) in enumerate(zip(labels, gains, strict=True)):
        runs = {seed: run(root / f"run-{index}-{seed}", label, seed, gain, answer) for seed in seeds}
        made.append(Group(label, runs))
    return made


def run(folder: Path, label: str, seed: int, gain: float, answer: str) -> tuple[RunRecord, EvalRecord]:
    folder.mkdir(parents=True)
    status = {"state": "done", "student_tokens": 5000, "teacher_tokens": 5000}
    (folder / "status.json").write_text(json.dumps(status))
    identity = {"teacher": "0" * 64, "loss": label, "train.seed": seed}
    record = RunRecord(folder, label, seed, 10, 1000, 1.5 + seed, 2**20, identity)
    return record, evaluation(folder / "eval" / "test", label, seed, gain, answer)


def evaluation(folder: Path, label: str, seed: int, gain: float, answer: str) -> EvalRecord:
    common = np.random.default_rng(0)
    own = np.random.default_rng([seed, *label.encode("utf-8", "surrogatepass")])
    hardness = common.random((EXAMPLES, 1))
    f_measures = hardness + gain + 0.05 * own.normal() + 0.1 * own.random((EXAMPLES, 3))
    answers = np.stack([f_measures, np.ones_like(f_measures)], axis=-1)
    tokens = common.integers(1, 20, EXAMPLES).astype(float)
    nll = tokens * (2.0 - gain + hardness[:, 0] + 0.05 * own.normal() + 0.1 * own.normal(size=EXAMPLES))
    texts, facts, *_ = build_metrics(SETTINGS)
    finish = {one.name: one.finish for one in facts[0].scores_from_tokens(_facts(), np.zeros(2, dtype=np.int64), 1)}
    rouge = texts[0].scores_from_texts([["a"]], [["a"]])[0].finish
    scores = [
        Score("rougeL", answers.mean(1), rouge, "higher", answers=answers),
        *(Score(name, np.stack([nll, tokens], axis=-1), one, "lower") for name, one in finish.items()),
    ]
    infos = tuple(
        ScoreInfo(one.name, one.better, "rougeL" if one.name == "rougeL" else "perplexity", f"{one.name}|made", eats)
        for one, eats in zip(scores, ("texts", "tokens", "tokens"), strict=True)
    )
    record = EvalRecord(
        "test", "model", folder, EXAMPLES, {one.name: over_examples(one) for one in scores}, infos, {}, "digest"
    )
    said = TextSamples([[answer] * 3] * EXAMPLES, [["ref"]] * EXAMPLES, ["prompt"] * EXAMPLES, [[True] * 3] * EXAMPLES)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_results(folder, record, SETTINGS, Rows([f"line {i}" for i in range(EXAMPLES)], said), scores)
    return record


def _facts() -> dict[str, np.ndarray]:
    return {"label_logp": np.array([-1.0, -2.0])}
