"""A teacher behind a server, by log-probabilities of given tokens."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from kdcli.config.sections import ServerConfig
from kdcli.data.batching import IGNORED, Batch
from kdcli.errors import InputError, KDError
from kdcli.losses.topk import TopKWithTail
from kdcli.models.packing import Packing
from kdcli.remote.client import Client, Request, UnreadError
from kdcli.remote.schema import ReplyParser, TopLogprobs, bodies, token_texts
from kdcli.storage import stored
from kdcli.storage.jsonl import RotatingStore
from kdcli.teachers.base import Teacher
from kdcli.text import one_line

ASKED = "asked"
"""Where log-probabilities lie in a run folder, until the run is done."""


class LogProbStore:
    """Log-probabilities that a server gave while a student was trained, so that a resumed run reads the same.

    A file holds those between two checkpoints. At 20 tokens a place, a response token takes about 320 bytes.

    Args:
        folder: where the files lie; made when the first answer comes, two levels below a folder that is there.
        about: what the answers follow from beside the sequence: model, address, tokens a place.
    """

    def __init__(self, folder: Path, about: str) -> None:
        self._about, self._files = about, RotatingStore(folder)

    def __len__(self) -> int:
        return len(self._files)

    def find(self, ids: Sequence[int]) -> list[TopLogprobs] | None:
        """Return what is known of each token of a sequence after the first, None if it was not asked for."""
        entry = self._files.find(self._key(ids))
        return None if entry is None else _unpacked(entry)

    def add(self, found: Mapping[tuple[int, ...], Sequence[TopLogprobs]]) -> None:
        """Append the log-probabilities of some sequences, and flush them to disk once.

        Raises:
            MachineError: the disk is full or may not be written.
        """
        self._files.add(*({"key": self._key(ids), **_packed(known)} for ids, known in found.items()))

    def rotate(self, checkpoints: int) -> None:
        """Begin a new file, and remove those that no checkpoint needs.

        Args:
            checkpoints: how many are kept; one file more is, for one that turns out to be damaged.
        """
        self._files.rotate(checkpoints)

    def _key(self, ids: Sequence[int]) -> str:
        return hashlib.sha256(json.dumps([self._about, [*ids]]).encode()).hexdigest()


def _packed(known: Sequence[TopLogprobs]) -> dict[str, Any]:
    ids = np.asarray([[*place] for place in known], dtype="<i4")
    values = np.asarray([[*place.values()] for place in known], dtype="<f8")
    return {"shape": [*ids.shape], "data": base64.b64encode(ids.tobytes() + values.tobytes()).decode()}


def _unpacked(entry: Mapping[str, Any]) -> list[TopLogprobs]:
    raw, (places, top_k) = base64.b64decode(entry["data"], validate=True), entry["shape"]
    cut = 4 * places * top_k
    ids = np.frombuffer(raw[:cut], dtype="<i4").reshape(places, top_k).tolist()
    values = np.frombuffer(raw[cut:], dtype="<f8").reshape(places, top_k).tolist()
    return [dict(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)]


_FIX = (
    "serve a teacher of the student's tokenizer, ask for fewer tokens (--set server.top_k=N, of a cache "
    "--set top_k=N), or start vLLM with --max-logprobs"
)
_LEAST = 1e-8
"""Mass that the rest keeps where rounding on the server leaves none."""


class RemoteTeacher(Teacher):
    """Gives a teacher's k likeliest tokens and the mass of the rest, as ``/completions`` tells them.

    Args:
        server: address, model's name and patience.
        tokenizer: the student's; the server's must be the same.
        vocab: real ids of it.
        top_k: tokens asked for at each place.
        kept: folder that keeps the answers, so that a sequence is asked for once; None keeps nothing.

    Raises:
        KDError: an address no server can have.
    """

    def __init__(
        self,
        server: ServerConfig,
        tokenizer: PreTrainedTokenizerBase,
        vocab: int,
        top_k: int,
        kept: Path | None = None,
    ) -> None:
        self._client, self.top_k = Client(server), top_k
        self._model, self._vocab = self._client.model(), vocab
        about = f"top {top_k} of {self._model} at {self._client.connection.address.url}"
        self.kept = None if kept is None else LogProbStore(kept, about)
        self._tokenizer, self._id_of = tokenizer, id_of(tokenizer)
        self._form: str | None = None

    @property
    def readers(self) -> int:
        """The one on the server."""
        return 1

    def after_checkpoint(self, kept: int) -> None:
        """Remove replies that no checkpoint needs any more."""
        if self.kept is not None:
            self.kept.rotate(kept)

    def side(self, batch: Batch, packing: Packing) -> TopKWithTail:
        """Ask the server about a micro-batch's sequences and return its output at the valid tokens.

        Raises:
            KDError: SERVE-02 to SERVE-09.
        """
        if not packing.count:
            return TopKWithTail(torch.zeros((0, self.top_k), dtype=torch.int64), torch.zeros((0, self.top_k + 1)))
        valid = packing.mask(batch.input_ids.shape)
        sequences = [_whole(batch, row) for row in range(len(batch.input_ids))]
        found: list[TopLogprobs] = []
        for row, known in enumerate(self.ask(sequences)):
            found += [known[at] for at in valid[row].nonzero().flatten().tolist()]
        return coarse_of(found).to(batch.input_ids.device)

    def ask(self, sequences: Sequence[Sequence[int]]) -> list[list[TopLogprobs]]:
        """Return what the teacher knows of each token after the first, sequence by sequence; asked once if kept."""
        if self.kept is None:
            return self._ask(sequences)
        known = {ids: self.kept.find(ids) for ids in map(tuple, sequences)}
        missing = [ids for ids, places in known.items() if places is None]
        fresh = dict(zip(missing, self._ask(missing), strict=True)) if missing else {}
        if fresh:
            self.kept.add(fresh)
        return [fresh.get(ids) or known[ids] or [] for ids in map(tuple, sequences)]

    def _ask(self, sequences: Sequence[Sequence[int]]) -> list[list[TopLogprobs]]:
        if self._form is None:
            self._form = self._choose(sequences[0])
        answers: dict[int, list[TopLogprobs]] = dict(self._asked(sequences, self._form))
        return [answers[place] for place in range(len(sequences))]

    def _asked(self, sequences: Sequence[Sequence[int]], form: str) -> list[tuple[int, list[TopLogprobs]]]:
        requests = [Request("completions", bodies(self._model, ids, self.top_k)[form]) for ids in sequences]
        answers = [*self._client.ask(requests, _whole_json)]
        return [(place, self._read(sequences[place], raw)) for place, raw in answers]

    def _read(self, ids: Sequence[int], raw: bytes) -> list[TopLogprobs]:
        try:
            known = ReplyParser(ids, self.top_k, self._vocab, self._id_of)(raw)
            if self._form is None and (other := decoded_differently(self._tokenizer, token_texts(raw))) is not None:
                raise ValueError(f"{other}: another tokenizer")
            return known
        except ValueError as error:
            what = f"cannot teach: {self._client.connection.address.hide(str(error).splitlines()[0], 160)}"
            raise InputError("SERVE-09", what, where=self._client.connection.address.url, fix=_FIX) from error

    def _choose(self, ids: Sequence[int]) -> str:
        """Return the form of question that the server understands."""
        first: KDError | None = None
        for form in ("prompt_logprobs", "echo"):
            try:
                self._asked([ids], form)
            except InputError as error:
                first = first or error
                continue
            return form
        assert first is not None, "two forms were tried"
        if isinstance(first, UnreadError):
            raise InputError("SERVE-09", f"cannot teach: {first.what}", where=first.where, fix=_FIX) from first
        raise first


def coarse_of(places: Sequence[TopLogprobs]) -> TopKWithTail:
    """Return k + 1 bins per place from the tokens known there.

    >>> import math
    >>> view = coarse_of([{4: math.log(0.5), 7: math.log(0.25)}])
    >>> view.ids.tolist(), [round(value, 4) for value in view.log_probs.exp()[0].tolist()]
    ([[4, 7]], [0.5, 0.25, 0.25])
    """
    ids = torch.tensor([[*known] for known in places], dtype=torch.int64)
    values = torch.tensor([[*known.values()] for known in places], dtype=torch.float64)
    rest = (1.0 - values.exp().sum(1, keepdim=True)).clamp_min(_LEAST).log()
    return TopKWithTail(ids, torch.log_softmax(torch.cat((values, rest), 1), dim=1).float())


def id_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int | None]:
    """Return what finds the id of a token's text: ``token_id:5``, or a text that only one token has."""

    @cache
    def by_text() -> dict[str, int | None]:
        table: dict[str, int | None] = {}
        for number in range(len(tokenizer)):
            for text in {str(tokenizer.decode([number])), str(tokenizer.convert_ids_to_tokens(number))}:
                table[text] = number if table.get(text, number) == number else None
        return table

    def find(text: str) -> int | None:
        head, mark, number = text.partition("token_id:")
        return int(number) if mark and not head and number.isdecimal() else by_text().get(text)

    return find


def decoded_differently(tokenizer: PreTrainedTokenizerBase, shown: dict[int, str]) -> str | None:
    """Return a token that the server writes otherwise than the tokenizer, None if there is none.

    Args:
        tokenizer: the student's.
        shown: id -> text, as the server writes it; broken characters are passed over.
    """
    for number, text in shown.items():
        own = str(tokenizer.decode([number]))
        if "\ufffd" not in text + own and text.strip() != own.strip():
            return f'token {number} is "{one_line(text, 20)}" there and "{one_line(own, 20)}" here'
    return None


def _whole_json(raw: bytes) -> bytes:
    """Return a reply that is JSON; one cut off on its way is asked for again."""
    stored.parse(raw)
    return raw


def _whole(batch: Batch, row: int) -> list[int]:
    """Return a sequence with the token that its last position predicts."""
    length = int(batch.attention_mask[row].sum())
    last = int(batch.labels[row, length - 1])
    return [*batch.input_ids[row, :length].tolist(), *([last] if last != IGNORED else [])]
