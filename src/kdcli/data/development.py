"""Keeps a share of the training rows out of training, chosen by what the rows say and not by where they stand."""

import hashlib
import math
from dataclasses import replace

from kdcli.data.examples import Example, TokenDataset
from kdcli.data.tables import counted
from kdcli.errors import InputError


def split_development(rows: TokenDataset, share: float) -> tuple[TokenDataset, TokenDataset]:
    """Return the rows to train on and the development rows.

    Rows of one prompt stay together, so that no development prompt is trained on. The choice depends
    on the rows alone: not on their order, a seed, or other rows' number beyond the share.

    Args:
        rows: all training rows.
        share: of the rows to keep out, above 0 and below 1; at least one row is kept out.

    Raises:
        InputError: all rows have one prompt, so nothing would be left.

    >>> rows = TokenDataset(tuple(Example((1, n), 1, f"say {n}:", (str(n),), f"line {n}") for n in range(20)))
    >>> [len(part) for part in split_development(rows, 0.1)]
    [18, 2]
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(rows.examples):
        groups.setdefault(_digest(example), []).append(index)
    wanted, kept_out = max(1, math.floor(share * len(rows) + 0.5)), set()
    for digest in sorted(groups)[: len(groups) - 1]:
        if len(kept_out) >= wanted:
            break
        kept_out.update(groups[digest])
    if not kept_out:
        raise InputError(
            "DATA-20",
            "all rows have the same prompt: none can be kept for development",
            fix="give development rows: --set data.dev=FILE",
        )
    rest = tuple(example for index, example in enumerate(rows.examples) if index not in kept_out)
    held = tuple(example for index, example in enumerate(rows.examples) if index in kept_out)
    note = f"{counted(len(held), 'training row')} of {len(rows):,} kept out of training for development"
    return replace(rows, examples=rest, notes=(*rows.notes, note)), replace(rows, examples=held, notes=())


def _digest(example: Example) -> str:
    """Return the sha256 of a row's prompt; of its text where there is no prompt."""
    text = example.prompt or (example.references[0] if example.references else repr(example.ids))
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()
