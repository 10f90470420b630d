"""The processor of a model of images and text: loaded without its code, called on one prompt, saved with a student."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoProcessor

from kdcli.errors import InputError, raise_machine_fault
from kdcli.models.headers import read_table
from kdcli.models.weights import silence_transformers
from kdcli.text import one_line

_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_PLACES = ("boi_token", "image_token")
"""Attributes of processors that hold the text which stands for one image in a prompt, the first that there is."""


class Processor:
    """Prepares the images of one prompt, and writes the tokens that stand for them into it.

    It is loaded when it is first asked, so that rows of text alone need nothing that images need.

    Args:
        folder: of a model of images and text.
        image_token_ids: ids of the tokens at which the model puts an image's vectors.
    """

    def __init__(self, folder: Path, image_token_ids: frozenset[int]) -> None:
        self.folder, self.image_token_ids = folder, image_token_ids

    @cached_property
    def inner(self) -> Any:
        """Return transformers' processor; code in the folder is never run.

        Raises:
            InputError: IMG-05, it is broken, needs code, or needs a package that is not installed.
        """
        folder = self.folder
        for name in _FILES:
            if (folder / name).is_file() and read_table(folder / name, "IMG-05").get("auto_map"):
                what = "the processor needs code from the folder, which is never run"
                fix = "use a family that transformers knows"
                raise InputError("IMG-05", what, where=str(folder / name), fix=fix)
        try:
            with silence_transformers():
                return AutoProcessor.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:
            # Each family's processor fails in its own way, and says which package it lacks.
            raise_machine_fault(error, str(folder))
            said = one_line(" ".join(str(error).split()) or type(error).__name__, 200)
            fix = "copy it again; where it names a package, such as torchvision, install that"
            raise InputError("IMG-05", f"the processor cannot be loaded: {said}", where=str(folder), fix=fix) from error

    @property
    def digest(self) -> str:
        """Return the sha256 over how images are prepared and how many tokens stand for each; not over the tokenizer."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        said = json.loads(self.inner.to_json_string())
        said = {name: value for name, value in said.items() if name != "chat_template"}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def places(self, prompt: str) -> int:
        """Return how many images a prompt has a place for."""
        mark = next((found for name in _PLACES if isinstance(found := getattr(self.inner, name, None), str)), None)
        return 0 if mark is None else prompt.count(mark)

    def read(self, prompt: str, images: Sequence[Any]) -> tuple[list[int], dict[str, Tensor], dict[str, Tensor]]:
        """Return a prompt's token ids with those of its images, a number for each token, and tensors of images.

        Args:
            prompt: text in which a mark stands for each image.
            images: in RGB, in the order of their marks.

        Returns:
            the ids, ``[p]``; by argument what the model reads of each token, ``[p]``; and by argument what it reads
            of the images, whose first axis is not the row.
        """
        with silence_transformers():
            found = dict(
                self.inner(text=[prompt], images=[list(images)], return_tensors="pt", add_special_tokens=False)
            )
        ids = found.pop("input_ids")
        found.pop("attention_mask", None)
        tokens = {name: value[0] for name, value in found.items() if value.shape == ids.shape}
        return ids[0].tolist(), tokens, {name: value for name, value in found.items() if name not in tokens}

    def save(self, folder: Path) -> None:
        """Copy the processor's files, its tokenizer's left out, into a folder."""
        for name in _FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)


def processor_of(folder: Path) -> Processor:
    """Return the processor of a model folder.

    Args:
        folder: of a model of images and text.
    """
    config = read_table(folder / "config.json", "MOD-02")
    found = (config.get(name) for name in ("image_token_id", "image_token_index"))
    return Processor(folder, frozenset(one for one in found if type(one) is int))
