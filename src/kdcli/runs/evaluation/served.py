"""Evaluates a model that only a server holds: texts are scored, no weight and no tokenizer is needed."""

import hashlib
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.config import EvalConfig
from kdcli.data.examples import Example, TokenDataset
from kdcli.data.prompts import check_template, choose_template, render, template_digest
from kdcli.data.rows import read_rows
from kdcli.engine.events import Event, Report
from kdcli.errors import InputError, UsageError
from kdcli.runs import splits
from kdcli.runs.evaluation import scoring
from kdcli.runs.evaluation.asking import answer
from kdcli.runs.evaluation.kept import Asking, KeptAnswers
from kdcli.runs.evaluation.measured import Measured, keep
from kdcli.runs.evaluation.protocol import protocol_of
from kdcli.runs.evaluation.results import Rows, make_place
from kdcli.runs.records import EvalRecord
from kdcli.runs.serving.answers import ServedAnswers
from kdcli.runs.serving.client import Client
from kdcli.runs.workshop import check_data_path, evaluation_digest

_SPLITS = ("test", "validation", "valid", "dev", "eval")


def with_model_name(config: EvalConfig) -> EvalConfig:
    """Return settings that name the server's model, which the server is asked for where they leave it open.

    Raises:
        KDError: SERVE-01 to SERVE-08.
    """
    if config.server.url is None or config.server.model is not None:
        return config
    server = config.server.model_copy(update={"model": Client(config.server).model()})
    return config.model_copy(update={"server": server})


def score_served(config: EvalConfig, report: Report) -> EvalRecord:
    """Evaluate what a server answers.

    Args:
        config: the server, rows and metrics; no model folder.
        report: told how far it is.

    Raises:
        UsageError: a metric that needs weights, or no metric of texts.
        InputError: rows that cannot be used.
        KDError: a server that fails; what it answered is kept beside ``output``.
    """
    chosen = scoring.choose_metrics(config.evaluation, teacher=False, model=False)
    if not chosen.texts:
        raise UsageError("EVAL-01", "no metric of texts", where="--metric", fix="give one, such as rougeL")
    path = check_data_path(config.data.eval or config.data.train, "--data")
    data = _rows(config, path)
    generation = config.evaluation.generation
    source = ServedAnswers(config.server, generation)
    for note in (*data.notes, *chosen.notes):
        report(Event("note", note))
    folder = Path(config.output) if config.output is not None else None
    if folder is not None:
        make_place(folder, config.output)
    kept = KeptAnswers(folder, Asking(source.identity, generation)) if folder is not None else None
    texts = answer(source, data, generation, report, kept)
    protocol: dict[str, Any] = {
        **protocol_of(config).record(),
        "server": source.identity,
        "template": data.template,
        "data": evaluation_digest(data),
        "examples": len(data),
        "metrics": {metric.name: metric.signature for metric in chosen.all},
        "generation": generation.model_dump(mode="json"),
        "teacher": None,
    }
    rows = Rows([example.where for example in data.examples], texts, kept)
    digest, name = hashlib.sha256(source.identity.encode()).hexdigest(), splits.evaluation_name(path)
    scored = scoring.score_texts(chosen, texts)
    return keep(Measured(name, source.identity, digest, folder, protocol, scored, rows, chosen.notes), config)


def _rows(config: EvalConfig, path: str) -> TokenDataset:
    """Read rows and put them into their template; without a tokenizer there are no tokens and no chat template."""
    check_template(config.data.template)
    found = read_rows(path, config.data, limit=config.data.eval_limit, splits=_SPLITS)
    nobody = PreTrainedTokenizerBase()
    examples = []
    for row in found.rows:
        prompt, _ = render(row, config.data.template, nobody)
        if not prompt.strip():
            fix = "give rows with prompts, or the model's folder"
            raise InputError("SERVE-09", "a server cannot be asked without a prompt", where=row.where, fix=fix)
        examples.append(Example((), 0, prompt, row.responses, row.where))
    names = [choose_template(row, config.data.template, nobody) for row in found.rows]
    return TokenDataset(tuple(examples), found.notes, found.digest, template_digest(names, nobody))
