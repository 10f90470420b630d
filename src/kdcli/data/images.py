"""Images of rows: found beside their file, opened safely, and prepared by a model's processor."""

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from kdcli.data.readers import size_text
from kdcli.errors import InputError, IntegrityError, raise_machine_fault
from kdcli.text import one_line

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 2**26
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DROP = "repair the row, or leave such rows out with --skip-bad"


@dataclass(frozen=True)
class ImageInputs:
    """What a model reads of one row besides its tokens.

    Args:
        tokens: by argument, a number for each of the row's first tokens, ``[p]``; 0 behind them.
        pixels: by argument, tensors whose first axis counts images, tiles or patches, and not rows.
        digest: sha256 over the images' bytes and what prepared them.
    """

    tokens: Mapping[str, Shaped[Tensor, " p"]]
    pixels: Mapping[str, Tensor]
    digest: str

    def to(self, device: torch.device) -> "ImageInputs":
        """Return the tensors on a device."""
        tokens, pixels = (
            {name: value.to(device, non_blocking=True) for name, value in part.items()}
            for part in (self.tokens, self.pixels)
        )
        return ImageInputs(tokens, pixels, self.digest)


def join_images(rows: Sequence[ImageInputs | None], width: int) -> dict[str, Tensor]:
    """Join what some rows read besides their tokens into the arguments of one forward pass.

    Tensors of images follow one another along the first axis, in the order of the rows; where their other axes
    differ, 0 fills up the smaller ones, as processors do. A row without images has none of them.

    Args:
        rows: of each row its images, or None.
        width: tokens of each row in the batch.

    >>> one, two = (ImageInputs({"kinds": torch.ones(2)}, {"pixels": torch.ones(n, n)}, "") for n in (1, 2))
    >>> {name: tuple(value.shape) for name, value in join_images([one, None, two], width=3).items()}
    {'kinds': (3, 3), 'pixels': (3, 2)}
    """
    some = [row for row in rows if row is not None]
    found: dict[str, Tensor] = {}
    for name, first in ((name, value) for row in some for name, value in row.tokens.items()):
        if name not in found:
            found[name] = first.new_zeros(len(rows), width)
            for place, row in enumerate(rows):
                if row is not None and name in row.tokens:
                    known = row.tokens[name][:width]
                    found[name][place, : len(known)] = known
    for name in dict.fromkeys(name for row in some for name in row.pixels):
        found[name] = _along_first([row.pixels[name] for row in some if name in row.pixels])
    return found


def _along_first(parts: list[Tensor]) -> Tensor:
    sizes = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    if all([*part.shape[1:]] == sizes for part in parts):
        return torch.cat(parts)
    whole = parts[0].new_zeros(sum(len(part) for part in parts), *sizes)
    start = 0
    for part in parts:
        whole[(slice(start, start + len(part)), *(slice(0, size) for size in part.shape[1:]))] = part
        start += len(part)
    return whole


@runtime_checkable
class ImageReader(Protocol):
    """Prepares images for a model, and writes into a prompt the tokens that stand for them."""

    @property
    def digest(self) -> str:
        """Return the sha256 over all that its numbers follow from."""
        ...

    @property
    def image_token_ids(self) -> frozenset[int]:
        """Return the ids of the tokens at which a model puts an image's vectors."""
        ...

    def places(self, prompt: str) -> int:
        """Return how many images a prompt has a place for."""
        ...

    def read(self, prompt: str, images: Sequence[Any]) -> tuple[list[int], dict[str, Tensor], dict[str, Tensor]]:
        """Return a prompt's token ids with those of its images, numbers for each token, and tensors of images."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """An image beside a file of rows.

    Args:
        path: where it lies.
        name: as the row has it.
        digest: sha256 over its bytes.
    """

    path: Path
    name: str
    digest: str


@dataclass(frozen=True)
class RowImages:
    """The images of one row's prompt, kept as files; their tensors are made anew each time they are asked for.

    Args:
        reader: what prepares them.
        prompt: the prompt as text, with a place for each.
        files: the images, in the order of their places.
        where: file and line of the row.
    """

    reader: ImageReader
    prompt: str
    files: tuple[ImageFile, ...]
    where: str

    @property
    def digest(self) -> str:
        """Return the sha256 over the images' bytes, in order, and over what prepares them."""
        said = " ".join([self.reader.digest, *(one.digest for one in self.files)])
        return hashlib.sha256(said.encode()).hexdigest()

    def read(self) -> tuple[list[int], ImageInputs]:
        """Return the prompt's ids, those that stand for images included, and what a model reads besides.

        Raises:
            InputError: IMG-02 or IMG-03, an image cannot be opened or does not fit the prompt.
            IntegrityError: IMG-04, an image has changed since the row was read.
        """
        images = [open_image(one, self.where) for one in self.files]
        try:
            ids, tokens, pixels = self.reader.read(self.prompt, images)
        except Exception as error:
            # A family's processor refuses images in its own way.
            raise_machine_fault(error, self.where)
            said = one_line(str(error) or type(error).__name__, 160)
            raise InputError("IMG-03", f"the processor says: {said}", where=self.where, fix=_DROP) from error
        return ids, ImageInputs(tokens, pixels, self.digest)

    def inputs(self, prompt_length: int) -> ImageInputs:
        """Return what a model reads besides a sequence's tokens.

        Args:
            prompt_length: tokens of the prompt; what a template put before its text counts 0.
        """
        _, found = self.read()
        padded = {
            name: torch.nn.functional.pad(value, (prompt_length - len(value), 0))
            for name, value in found.tokens.items()
        }
        return ImageInputs(padded, found.pixels, found.digest)


def find_images(names: Sequence[str], beside: Path, where: str) -> tuple[ImageFile, ...]:
    """Find a row's images, and check each by opening it.

    Args:
        names: paths as the row has them, relative to the folder of its file.
        beside: that folder.
        where: file and line of the row.

    Raises:
        InputError: IMG-02, one is missing, broken, too large, or of another format.
    """
    found = []
    for name in names:
        path = beside / name
        content = _content(path, name, where)
        _decoded(content, name, where)
        found.append(ImageFile(path, name, hashlib.sha256(content).hexdigest()))
    return tuple(found)


def open_image(image: ImageFile, where: str) -> Any:
    """Return an image in RGB, turned as its camera was held.

    Raises:
        InputError: IMG-02, it cannot be opened any more.
        IntegrityError: IMG-04, its bytes are not those that were read first.
    """
    content = _content(image.path, image.name, where)
    if hashlib.sha256(content).hexdigest() != image.digest:
        what, fix = (
            f'image "{one_line(image.name, 80)}" has changed since the row was read',
            "put it back, or start anew",
        )
        raise IntegrityError("IMG-04", what, where=where, fix=fix)
    return _decoded(content, image.name, where)


def _content(path: Path, name: str, where: str) -> bytes:
    shown = f'image "{one_line(name, 80)}"'
    try:
        if not path.is_file():
            raise InputError(
                "IMG-02", f"{shown} is not there (looked for {one_line(str(path))})", where=where, fix=_DROP
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise_machine_fault(error, str(path))
        raise InputError(
            "IMG-02", f"{shown} cannot be read: {one_line(str(error), 80)}", where=where, fix=_DROP
        ) from error
    if len(content) > MAX_BYTES:
        raise InputError("IMG-02", f"{shown} is larger than {size_text(MAX_BYTES)}", where=where, fix=_DROP)
    return content


def _decoded(content: bytes, name: str, where: str) -> Any:
    from PIL import Image, ImageOps  # slow to import, and most rows have no images

    shown = f'image "{one_line(name, 80)}"'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > MAX_PIXELS:
                    what = f"{shown} has {pixels:,} pixels, more than {MAX_PIXELS:,}"
                    raise InputError("IMG-02", what, where=where, fix=_DROP)
                image.load()
                return ImageOps.exif_transpose(image).convert("RGB")
    except InputError:
        raise
    except Exception as error:
        # Pillow's decoders fail in their own ways on bytes that are no image, or half of one.
        raise_machine_fault(error, where)
        said = one_line(str(error).partition("<")[0] or type(error).__name__, 80)
        what = f"{shown} cannot be decoded as {', '.join(FORMATS)}: {said}"
        raise InputError("IMG-02", what, where=where, fix=_DROP) from error
