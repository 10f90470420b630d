"""Loads a tokenizer, and says in one line why it cannot."""

import base64
import binascii
import importlib.util
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, MachineError, raise_machine_fault
from kdcli.forked import ExceededError, bounded
from kdcli.models.internals import tokenizer_class_from_name
from kdcli.models.jsonfile import read_table
from kdcli.models.locate import locate
from kdcli.models.quiet import quiet
from kdcli.text import one_line

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json", "vocab.model")
_PROBE = "The quick brown fox, 12 + 34 = 46.\nÄgypten, naïve café; 日本語 🙂\tdef f(x): return x"


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id; code in the folder is never run.

    Args:
        path: folder or hub id as typed.

    Raises:
        InputError: TOK-01 none there, TOK-02 damaged, TOK-09 takes too long or too much memory, TOK-11 needs code.
        MachineError: TOK-12 and ENV-05, a package that reads it is not installed; ENV-03, the disk refuses.
    """
    folder = locate(path, looked_for="tokenizer.json", code="TOK-01")
    _check_files(folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), config=_config(folder), trust_remote_code=False, local_files_only=True
            )
            next(bounded([len(_PROBE)], lambda _: len(tokenizer.encode(_PROBE)).to_bytes(8, "big")))
    except ExceededError as error:
        raise InputError(
            "TOK-09",
            f"the tokenizer took more than {error.spent} for one line of text",
            where=str(folder),
            fix="use another tokenizer",
        ) from error
    except BaseException as error:
        # The tokenizers library panics with an error that is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        _check_readers(folder)
        raise_machine_fault(error, str(folder))
        reason = one_line(str(error).strip() or type(error).__name__, 160)
        raise InputError(
            "TOK-02", f"the tokenizer cannot be loaded: {reason}", where=str(folder), fix="copy it again"
        ) from error
    return tokenizer


def _check_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _FILES) and not [*folder.glob("*.tiktoken")]:
        raise InputError(
            "TOK-01",
            f"no tokenizer in {one_line(str(folder))} (looked for tokenizer.json)",
            fix="copy the tokenizer's files there",
        )
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            table = read_table(folder / name, "TOK-02")
            if name == "tokenizer_config.json":
                _refuse_code(table, folder / name)


def _check_readers(folder: Path) -> None:
    """Name the packages that a folder without tokenizer.json is read with and that are not installed.

    Raises:
        MachineError: TOK-12.
    """
    if (folder / "tokenizer.json").is_file():
        return
    for path in sorted(folder.iterdir()):
        needed = _readers(path) if path.is_file() else {}
        missing = [name for name, module in needed.items() if not _installed(module)]
        if missing:
            what = f"{path.name} is read with {' and '.join(missing)}, which is not installed"
            fix = f"pip install {' '.join(missing)}; or copy the tokenizer's tokenizer.json there"
            raise MachineError("TOK-12", what, where=str(folder), fix=fix)


def _readers(path: Path) -> dict[str, str]:
    """Return the packages that read a tokenizer's file: name to install -> module."""
    if path.name == "tekken.json":
        return {"mistral-common": "mistral_common"}
    if path.suffix == ".tiktoken" or (path.suffix == ".model" and _is_ranks(path)):
        return {"tiktoken": "tiktoken"}
    if path.suffix == ".model":
        return {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    return {}


def _is_ranks(path: Path) -> bool:
    """Tell whether a file holds tiktoken's lines: a token in base64, a space, its rank."""
    with path.open("rb") as file:
        token, _, rank = file.readline(1000).partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.strip().isdigit()
    except (binascii.Error, ValueError):
        return False


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _refuse_code(table: dict[str, Any], path: Path) -> None:
    """Refuse a tokenizer class that only the folder's own code defines."""
    name = table.get("tokenizer_class")
    if not table.get("auto_map"):
        return
    plain = name.removesuffix("Fast") if isinstance(name, str) else ""
    if not plain or (tokenizer_class_from_name(plain) or tokenizer_class_from_name(f"{plain}Fast")) is None:
        raise InputError(
            "TOK-11",
            f'tokenizer class "{one_line(str(name), 60)}" needs code from the folder, which is never run',
            where=str(path),
            fix="save it as tokenizer.json and drop auto_map",
        )


def _config(folder: Path) -> PreTrainedConfig:
    """Return a config of the folder's family, so that AutoTokenizer reads no other file for it."""
    path = folder / "config.json"
    table = read_table(path, "MOD-02") if path.is_file() else {}
    family, name = table.get("model_type"), table.get("tokenizer_class")
    config = CONFIG_MAPPING[family]() if isinstance(family, str) and family in CONFIG_MAPPING else PreTrainedConfig()
    if isinstance(name, str):
        config.tokenizer_class = name
    return config


def pad_id(tokenizer: PreTrainedTokenizerBase, ends: EndTokens, rows: int) -> int:
    """Return an id to fill padding with; padding is always masked, so any valid id does."""
    candidates = (tokenizer.pad_token_id, *ends.ids, 0)
    return next(token for token in candidates if type(token) is int and 0 <= token < rows)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that were added to a tokenizer's own table: text -> id."""
    return {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int, path: str, whose: str = "") -> None:
    """Refuse a tokenizer whose own table has ids for which the model has no row.

    An added token may lack a row: it stands in no text but one that spells it.

    Args:
        tokenizer: the model's tokenizer.
        rows: rows of the model's head.
        path: the model, for messages.
        whose: words that follow "embedding rows".

    Raises:
        InputError: TOK-04.
    """
    added = added_tokens(tokenizer)
    highest = max((index for name, index in tokenizer.get_vocab().items() if name not in added), default=0)
    if highest >= rows:
        raise InputError(
            "TOK-04",
            f"the tokenizer's highest token id {highest} >= {rows} embedding rows{whose}",
            where=path,
            fix="use the tokenizer this model was trained with",
        )
