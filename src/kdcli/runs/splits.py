"""Which rows a run trains on and which it is measured on: training, development and held-out rows."""

from pathlib import Path

from kdcli.config import DataConfig, EvalSettings
from kdcli.data.dataset import TokenDataset
from kdcli.data.development import split_development
from kdcli.errors import UsageError
from kdcli.runs.folder import EVAL
from kdcli.runs.model_facts import ModelFacts
from kdcli.runs.workshop import Workshop, check_data_path

DEV = "dev"


def training_rows(data: DataConfig, reader: ModelFacts, workshop: Workshop) -> TokenDataset:
    """Return the rows to train on, without those kept for development."""
    rows = workshop.data(check_data_path(data.train, "--data"), reader, data, role="train")
    return split_development(rows, data.dev_share)[0] if data.dev_share else rows


def corpus_rows(data: DataConfig, reader: ModelFacts, workshop: Workshop) -> TokenDataset:
    """Return the rows of the second corpus, all of them."""
    path = check_data_path(data.corpus, "--set data.corpus")
    return workshop.data(path, reader, data.model_copy(update={"limit": None}), role="train")


def measured_rows(data: DataConfig, split: str, reader: ModelFacts, workshop: Workshop) -> TokenDataset:
    """Return the rows that scores are taken on.

    Args:
        data: where rows come from.
        split: "test" for held-out rows, "dev" for development rows.
        reader: the model whose tokenizer reads them.
        workshop: what is loaded already.

    Raises:
        UsageError: there are none.
        InputError: data that cannot be used.
    """
    path = check_measured(data, split)
    if split == "test" or data.dev is not None:
        return workshop.data(path, reader, data, role="eval")
    return split_development(workshop.data(path, reader, data, role="train"), data.dev_share)[1]


def leaves_answers_out(settings: EvalSettings, rows: TokenDataset | None) -> bool:
    """Whether metrics of answers are left out: no row has a prompt to answer, and nobody asked for them by name.

    Args:
        settings: the metrics' names.
        rows: what is measured; None where that is not known yet.
    """
    return rows is not None and rows.without_prompt == len(rows) and settings.metrics == EvalSettings().metrics


def measures_after_training(data: DataConfig, split: str) -> bool:
    """Whether there is anything to measure a trained student on."""
    return data.eval is not None if split == "test" else bool(data.dev or data.dev_share)


def has_development_apart(data: DataConfig, split: str) -> bool:
    """Whether there are development rows, and they are not the ones measured."""
    return split != "dev" and bool(data.dev or (data.dev_share and data.train))


def check_measured(data: DataConfig, split: str) -> str:
    """Return the path that measured rows are read from, before anything is loaded.

    Raises:
        UsageError: there are no such rows.
        InputError: nothing is at the path.
    """
    if split == "test":
        return check_data_path(data.eval or data.train, "--data")
    if not (data.dev or (data.dev_share and data.train)):
        fix = "give them, or --set data.train=FILE --set data.dev_share=0.1"
        raise UsageError("CLI-20", "no development rows", where="--dev-data", fix=fix)
    return check_data_path(data.dev or data.train, "--dev-data" if data.dev else "--data")


def evaluation_name(path: str) -> str:
    """Return what an evaluation on these rows is called.

    >>> evaluation_name("data/test.jsonl.gz")
    'test'
    """
    return Path(path).name.split(".")[0] or "eval"


def evaluation_folder(data: DataConfig, split: str) -> str:
    """Return where in a run folder the evaluation lies, apart from others for development rows.

    >>> evaluation_folder(DataConfig(eval="test.jsonl"), "test"), evaluation_folder(DataConfig(), "dev")
    ('eval/test', 'dev')
    """
    return DEV if split == "dev" else f"{EVAL}/{evaluation_name(str(data.eval or data.train))}"
