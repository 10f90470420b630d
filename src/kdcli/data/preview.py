"""Shows examples as the model meets them, with the part that is learnt set apart."""

from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from kdcli.data.collate import IGNORED, collate
from kdcli.data.dataset import TokenDataset
from kdcli.data.tokens import decode_after
from kdcli.text import visible


@dataclass(frozen=True)
class Preview:
    """One decoded example.

    Args:
        where: file and line.
        segments: pieces of text in order, each with whether its tokens are targets.
        tokens: length of the sequence in tokens.
        targets: how many of them are targets.
    """

    where: str
    segments: tuple[tuple[str, bool], ...]
    tokens: int
    targets: int


def preview(dataset: TokenDataset, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Preview]:
    """Decode the first examples; the mask shown is read from a batch's labels.

    Args:
        dataset: tokenised rows.
        tokenizer: decodes them, special tokens included.
        count: how many examples.
    """
    return [_show(dataset, tokenizer, index) for index in range(min(count, len(dataset)))]


def _show(dataset: TokenDataset, tokenizer: PreTrainedTokenizerBase, index: int) -> Preview:
    example = dataset.examples[index]
    labels = collate(dataset.examples, [index], pad_id=0).labels[0].tolist()
    is_target = [False, *(label != IGNORED for label in labels)]
    segments, end = [], 0
    for target, run in groupby(is_target):
        start, end = end, end + len(list(run))
        segments.append(
            (visible(decode_after(tokenizer, example.ids[:start], example.ids[start:end], special=True)), target)
        )
    return Preview(example.where, tuple(segments), len(example.ids), sum(is_target))
