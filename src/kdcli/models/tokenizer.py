"""Loads a tokenizer, and says in one line why it cannot."""

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from kdcli.errors import InputError
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
        InputError: TOK-01 none there, TOK-02 damaged, TOK-07 cannot encode, TOK-11 needs code.
    """
    folder = locate(path, looked_for="tokenizer.json", code="TOK-01")
    _check_files(folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), config=_config(folder), trust_remote_code=False, local_files_only=True
            )
            tokenizer.encode(_PROBE)
    except BaseException as error:
        # The tokenizers library panics with an error that is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
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


def end_ids(named: int | list[int] | None, tokenizer: PreTrainedTokenizerBase, rows: int, path: str) -> tuple[int, ...]:
    """Return the ids that end a text: the generation config's, else the tokenizer's.

    Args:
        named: ``eos_token_id`` of the generation config.
        tokenizer: the model's tokenizer.
        rows: rows of the model's head.
        path: the model, for messages.

    Raises:
        InputError: TOK-13 where there is no end token, TOK-04 where it lies outside the rows.
    """
    found: Any = named if named is not None else tokenizer.eos_token_id
    ids: tuple[Any, ...] = tuple(found) if isinstance(found, list | tuple) else () if found is None else (found,)
    if not ids:
        raise InputError(
            "TOK-13", "no end token: neither generation_config.json nor the tokenizer names one", where=path,
            fix="set eos_token_id in generation_config.json",
        )  # fmt: skip
    for token in ids:
        if type(token) is not int or not 0 <= token < rows:
            what = f"end token id {one_line(str(token), 40)} is not one of the model's {rows} rows"
            raise InputError("TOK-04", what, where=path, fix="set eos_token_id in generation_config.json")
    return ids


def pad_id(tokenizer: PreTrainedTokenizerBase, end: tuple[int, ...], rows: int) -> int:
    """Return an id to fill padding with; padding is always masked, so any valid id does."""
    candidates = (tokenizer.pad_token_id, *end, 0)
    return next(token for token in candidates if type(token) is int and 0 <= token < rows)


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int, path: str) -> None:
    """Refuse a tokenizer that knows ids for which the model has no row (TOK-04)."""
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise InputError(
            "TOK-04",
            f"the tokenizer's highest token id {highest} >= {rows} embedding rows",
            where=path,
            fix="use the tokenizer this model was trained with",
        )
