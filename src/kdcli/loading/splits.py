"""Training, development and held-out rows of a run."""

from pathlib import Path

from kdcli.config.sections import DataConfig, EvalSettings, MonitorConfig
from kdcli.data.alignment import pair_rows
from kdcli.data.dataset import Role, split_development
from kdcli.data.few_shot import Feedback
from kdcli.data.tokenize import TokenDataset
from kdcli.errors import UsageError
from kdcli.loading.info import ModelInfo, ModelPair
from kdcli.loading.session import Session, check_data_path
from kdcli.storage.run_dir import BEST, EVAL

_ANY_LENGTH = 2**31 - 1


def rows_of_teacher(
    pair: ModelPair,
    rows: TokenDataset,
    data: DataConfig,
    session: Session,
    *,
    role: Role = "train",
    feedback: Feedback | None = None,
) -> TokenDataset | None:
    """Return training rows as a teacher of another tokenizer reads them, one for one; None where it reads as usual.

    Args:
        pair: student and teacher.
        rows: the rows as the student reads them.
        data: where they come from; no limit of length holds for the teacher but its own.
        session: what is loaded already.
        role: "prompts" where answers are not read.
        feedback: rows of which each prompt shows a few.

    Raises:
        InputError: a row that the teacher cannot read.
    """
    if pair.teacher_vocab is None or pair.teacher is None:
        return None
    whole = data.model_copy(update={"max_length": _ANY_LENGTH, "max_prompt_length": None})
    path = check_data_path(data.train, "--data")
    return pair_rows(rows, session.data(path, pair.teacher, whole, role=role, feedback=feedback))


DEV = "dev"


def training_rows(data: DataConfig, reader: ModelInfo, session: Session, *, images: bool = False) -> TokenDataset:
    """Return the rows to train on, without those kept for development; only if told so may they have images."""
    rows = session.data(check_data_path(data.train, "--data"), reader, data, role="train", images=images)
    return split_development(rows, data.dev_share)[0] if data.dev_share else rows


def corpus_rows(data: DataConfig, reader: ModelInfo, session: Session) -> TokenDataset:
    """Return the rows of the second corpus, all of them."""
    path = check_data_path(data.corpus, "--set data.corpus")
    return session.data(path, reader, data.model_copy(update={"limit": None}), role="train")


def measured_rows(data: DataConfig, split: str, reader: ModelInfo, session: Session) -> TokenDataset:
    """Return the rows that scores are taken on.

    Args:
        data: where rows come from.
        split: "test" for held-out rows, "dev" for development rows.
        reader: the model whose tokenizer reads them.
        session: what is loaded already.

    Raises:
        UsageError: there are none.
        InputError: data that cannot be used.
    """
    path = check_measured(data, split)
    if split == "test" or data.dev is not None:
        return session.data(path, reader, data, role="eval", images=True)
    rows = session.data(path, reader, data, role="train", images=True)
    return split_development(rows, data.dev_share)[1]


def leaves_answers_out(settings: EvalSettings, rows: TokenDataset | None) -> bool:
    """Whether metrics of answers are left out: no row has a prompt to answer, and they were not asked for by name.

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


# Says where a student was chosen, or its training ended, by the very rows that it is measured on.


_FIX = "give development rows: data.dev=FILE or data.dev_share=0.1"


def watches_held_out(monitor: MonitorConfig, data: DataConfig) -> bool:
    """Whether a run evaluates on its held-out rows during training, for want of development rows."""
    return monitor.every is not None and not measures_after_training(data, "dev")


def watching_warning(monitor: MonitorConfig, data: DataConfig, *, follows: bool) -> str:
    """Return the warning of a run that evaluates on its held-out rows during training; empty where it does not.

    Args:
        monitor: what it looks at.
        data: where rows come from.
        follows: whether its source follows what is measured meanwhile.
    """
    if not watches_held_out(monitor, data):
        return ""
    parts = [f"{BEST}/"]
    parts += ["the end of training (monitor.patience)"] if monitor.patience is not None else []
    parts += ["the mixture that the source draws"] if follows else []
    what = f"no development rows: {', '.join(parts)} are chosen by the held-out rows"
    return f"{what}, so scores on those come out too good; {_FIX}"
