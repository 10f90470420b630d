"""Verifies tokens in fixed-size forward passes where low precision makes logits depend on the batch.

The tokens of a row are defined by reading it alone, in pieces whose widths depend on nothing but where they begin: the
prompt, then blocks of 8, 8, 16, 32, 32, .. tokens on top of the keys and values of the pieces before. A causal
model's logits after token t then follow, bit for bit, from prompt and tokens up to t: all shapes are given by t, and
what a block holds behind t is not seen. So each token follows from those before it, and an answer from its prompt and
its draws, whatever was proposed: the batch only decides how much of a block is right at the first attempt.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kdcli.config.sections import GenerationConfig
from kdcli.generation.decoder import Decoder
from kdcli.generation.sampling import SequenceState, choose, exponential_noise

_NARROWEST, _WIDEST = 8, 32
"""Tokens of a block: few at first, as many answers are short."""


class BatchInvariance:
    """Reads the tokens of each row again, alone, and corrects those that it would not have generated alone.

    Args:
        decoder: the model; its cache holds the rows.
        config: temperature and nucleus mass.
    """

    def __init__(self, decoder: Decoder, config: GenerationConfig) -> None:
        self.decoder, self.config = decoder, config
        self.repaired = 0

    def is_due(self, row: SequenceState) -> bool:
        """Whether a row's open block is full, so that its tokens can be verified."""
        return len(row.tokens) > row.block + self.width(row)

    def width(self, row: SequenceState) -> int:
        """Return the tokens of a row's open block; they follow from where it begins."""
        if not self.decoder.reads_blocks:
            return 1
        width = min(max(row.block, _NARROWEST), _WIDEST)
        limit = self.decoder.limit
        return width if limit is None else min(width, limit - len(row.prompt) - row.block)

    def verify(self, row: SequenceState, place: int) -> None:
        """Make a row's tokens final, up to the first that it would not have generated alone, which is corrected.

        Args:
            row: its tokens up to the first of its open block are final.
            place: where the decoder's cache holds it.
        """
        decoder, tokens, begin, width = self.decoder, row.tokens, row.block, self.width(row)
        inside = tokens[begin : begin + width]
        past = decoder.cache.kept(place, len(row.prompt) + begin)
        read = decoder.rescore(past, [*inside, *[row.prompt[0]] * (width - len(inside))], row.offset)
        for at, (token, own) in enumerate(zip(tokens[begin + 1 :], self._picks(row, read.logits), strict=False)):
            if token != own:
                row.correct(begin + 1 + at, own, decoder.model.ends, decoder.ids)
                self.repaired += 1
                break
        decoder.cache.replace(place, read.kept, len(row.prompt) + len(row.tokens) - 1)
        if self.is_due(row):
            row.block += width

    def _picks(self, row: SequenceState, logits: Tensor) -> Iterator[int]:
        """Yield the tokens that follow those of the open block; one by one where rows of logits share work."""
        times = None
        if self.config.temperature > 0.0:
            stream = row.stream_before(row.block + 1, self.decoder.ids)
            times = torch.from_numpy(exponential_noise([stream] * len(logits), self.decoder.ids)).to(logits.device)
        step = len(logits) if self.config.top_p == 1.0 else 1
        for at in range(0, len(logits), step):
            own = None if times is None else times[at : at + step]
            yield from choose(logits[at : at + step], own, self.config).tokens.tolist()
