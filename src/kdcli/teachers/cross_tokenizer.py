"""A teacher with another tokenizer; valid where token boundaries coincide."""

from collections.abc import Iterator

import torch

from kdcli.data.alignment import NO_OFFSET, AlignedSequence, TokenAligner
from kdcli.data.batching import IGNORED, Batch, collate
from kdcli.data.tokenize import Example
from kdcli.losses.token_facts import ALIGNED
from kdcli.losses.topk import TopKWithTail
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Packing, Predictions, find_valid
from kdcli.teachers.base import Teacher, TeacherOutput


class CrossTokenizerTeacher(Teacher):
    """A teacher that reads each sequence of the student in its own tokens.

    For a token of the student its output is taken where it has read exactly the text before that
    token. Where no token of its own ends there, or beyond its last position, the token is not aligned.

    Args:
        inner: the teacher, live, one or several.
        aligner: from the student's sequences to the teacher's.
        vocab: the teacher's real ids.
        pad_id: an id to fill the teacher's batches with.
        positions: the longest sequence that the teacher can read; None for any.
    """

    def __init__(
        self, inner: Teacher, aligner: TokenAligner, *, vocab: int, pad_id: int, positions: int | None
    ) -> None:
        self.inner, self.aligner = inner, aligner
        self.vocab, self.pad_id, self.positions = vocab, pad_id, positions

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """Those of the teacher inside."""
        return self.inner.models

    def side(self, batch: Batch, packing: Packing) -> Predictions | TopKWithTail:
        """Return hidden states of the student's valid tokens, 0 where they are not aligned."""
        return self.output(batch, packing).side

    def output(self, batch: Batch, packing: Packing) -> TeacherOutput:
        """Return the same, the size of its vocabulary, and 1 for each token that is aligned, 0 for others."""
        places: list[int] = []
        examples: list[Example] = []
        read = 0
        for one in self._counterparts(batch):
            places += [read + place if place != NO_OFFSET else NO_OFFSET for place in one.places]
            if one.is_aligned:
                examples.append(Example((*one.ids, 0), one.prompt_length, "", (), ""))
                read += len(one.ids) - one.prompt_length + 1
        theirs = collate(examples, range(len(examples)), self.pad_id) if examples else _nothing()
        theirs = theirs.to(batch.input_ids.device)
        seen = self.inner.side(theirs, find_valid(theirs.labels)).whole
        assert seen is not None, "refused before: a teacher of another tokenizer runs"
        index = torch.tensor(places, dtype=torch.int64, device=batch.input_ids.device)
        return TeacherOutput(seen.rows(index), self.vocab, {ALIGNED: (index != NO_OFFSET).float()})

    def rehearse(self, batch: Batch, packing: Packing) -> None:
        """Run the teacher inside: made-up sequences are no text that it could read in its own tokens."""
        self.inner.rehearse(batch, packing)

    def _counterparts(self, batch: Batch) -> Iterator[AlignedSequence]:
        """Yield what the teacher reads of each sequence that holds a valid token."""
        ids, labels = batch.input_ids.tolist(), batch.labels.tolist()
        lengths, rows = batch.attention_mask.sum(1).tolist(), batch.example.tolist()
        for own, targets, length, row in zip(ids, labels, lengths, rows, strict=True):
            first = next((place for place in range(length) if targets[place] != IGNORED), None)
            if first is not None:
                sequence = (*own[:length], targets[length - 1])
                yield self.aligner.align(sequence, first + 1, row).within(self.positions)


def _nothing() -> Batch:
    one = torch.zeros((1, 1), dtype=torch.int64)
    return Batch(one, one + 1, one + IGNORED, torch.full((1,), -1))
