"""Tiny random models of images and text of three families, with processors and pictures; no download."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.configuration_gemma3 import Gemma3Config
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.configuration_idefics3 import Idefics3Config
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.models.llava.processing_llava import LlavaProcessor

import tiny

FAMILIES = ("llava", "idefics3", "gemma3")

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
_VISION = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "image_size": 8,
}  # fmt: skip
_TEXT = {
    "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def _tokenizer(mark: str, *more: str, **named: str):
    found = tiny.tokenizer()
    found.add_special_tokens({"additional_special_tokens": [mark, *more]})
    found.chat_template = TEMPLATE.replace("MARK", mark)
    return type(found)(
        tokenizer_object=found._tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        chat_template=found.chat_template, model_max_length=256, extra_special_tokens=named or None,
    )  # fmt: skip


def processor(family: str):
    """The processor of a family, on pictures of 8 by 8 pixels with patches of 4."""
    if family == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        text = _tokenizer("<image>")
        return LlavaProcessor(
            images, text, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            chat_template=text.chat_template,
        )  # fmt: skip
    if family == "idefics3":
        images = Idefics3ImageProcessorPil(size={"longest_edge": 16}, max_image_size={"longest_edge": 8})
        places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
        text = _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places)
        return Idefics3Processor(images, text, image_seq_len=1, chat_template=text.chat_template)
    images = Gemma3ImageProcessorPil(size={"height": 8, "width": 8})
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    text = _tokenizer(names["boi_token"], names["eoi_token"], names["image_token"], **names)
    return Gemma3Processor(images, text, image_seq_length=1, chat_template=text.chat_template)


def model(family: str, *, seed: int = 0, width: int = 16, layers: int = 2):
    """A random model of images and text, in fp32, on the CPU."""
    text = processor(family).tokenizer
    sizes = {**_TEXT, "vocab_size": len(text), "hidden_size": width, "num_hidden_layers": layers}
    if family == "llava":
        config = LlavaConfig(
            vision_config={**_VISION, "model_type": "clip_vision_model", "projection_dim": 8},
            text_config={**sizes, "model_type": "llama"}, image_token_id=text.convert_tokens_to_ids("<image>"),
            vision_feature_select_strategy="default", vision_feature_layer=-2,
        )  # fmt: skip
    elif family == "idefics3":
        config = Idefics3Config(
            vision_config=_VISION, text_config={**sizes, "model_type": "llama"}, scale_factor=2,
            image_token_id=text.convert_tokens_to_ids("<image>"), pad_token_id=0,
        )  # fmt: skip
    else:
        config = Gemma3Config(
            vision_config={**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
            text_config={**sizes, "head_dim": 8, "model_type": "gemma3_text"}, mm_tokens_per_image=1,
            boi_token_index=text.convert_tokens_to_ids("<start_of_image>"),
            eoi_token_index=text.convert_tokens_to_ids("<end_of_image>"),
            image_token_index=text.convert_tokens_to_ids("<image_soft_token>"),
        )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


def folder(path: Path, family: str, **options) -> Path:
    """A saved model folder with processor and tokenizer."""
    model(family, **options).save_pretrained(path)
    processor(family).save_pretrained(path)
    return path


def picture(path: Path, seed: int, size: tuple[int, int] = (12, 9)) -> Path:
    """A picture of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def row(images: list[str], question: str, answer: str) -> dict:
    """A row of a conversation whose first turn shows images."""
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **({"images": images} if images else {})}


def rows(path: Path, count: int = 8, *, seed: int = 0) -> Path:
    """A file of rows with none, one or two pictures each, of several sizes."""
    lines = []
    for at in range(count):
        names = [f"pictures/{seed}-{at}-{number}.png" for number in range((1, 2, 0, 1)[at % 4])]
        for number, name in enumerate(names):
            picture(path.parent / name, 1000 * seed + 10 * at + number, (9 + at % 3, 12 - at % 2))
        lines.append(row(names, f"what {at}?", chr(97 + at % 26) * (1 + at % 4)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
