"""What a model of images reads besides tokens: joined and cut by rows; positions of images in a plane."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tiny
import vision
from kdcli.config.sections import GenerationConfig
from kdcli.data.batching import collate
from kdcli.data.images import ImageInputs, RowImages, find_images, join_images
from kdcli.data.tokenize import Example
from kdcli.generation import GenerationRequest, answers
from kdcli.models.internals import position_offset
from kdcli.models.load import assemble

CPU = torch.device("cpu")
PAD, VIDEO, START, END = (len(tiny.WORDS) + at for at in range(4))


class Patches:
    """Prepares images as Qwen2-VL does: rows of patches, and how many there are in height and width."""

    digest = "patches"
    image_token_ids = frozenset({PAD})

    def __init__(self):
        self.images = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=1, size={"shortest_edge": 64, "longest_edge": 512}
        )

    def places(self, prompt):
        return prompt.count("#")

    def read(self, prompt, images):
        found = self.images(images=list(images), return_tensors="pt")
        counts = iter((found["image_grid_thw"].prod(-1) // 4).tolist())
        letters = tiny.tokenizer().get_vocab()
        ids = [one for letter in prompt for one in
               ([START, *[PAD] * next(counts), END] if letter == "#" else [letters[letter]])]  # fmt: skip
        return ids, {"mm_token_type_ids": torch.tensor([int(one == PAD) for one in ids])}, dict(found)


@pytest.fixture(scope="module")
def qwen():
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": len(tiny.WORDS) + 4, "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 1,
            "spatial_merge_size": 2, "mlp_ratio": 2,
        },
        image_token_id=PAD, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    words = [*tiny.WORDS, "<pad#>", "<video>", "<start>", "<end>"]
    return assemble(model, tiny.tokenizer(words), "qwen", "0", device=CPU, role="teacher")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Rows with one image, none, and two of other sizes: 4, 0 and 6 + 2 tokens stand for them."""
    place, found = tmp_path_factory.mktemp("patches"), []
    for number, sizes in enumerate([[(16, 16)], [], [(24, 16), (16, 8)]]):
        names = [vision.picture(place / f"{number}-{at}.png", 10 * number + at, size).name
                 for at, size in enumerate(sizes)]  # fmt: skip
        prompt = "#" * len(sizes) + f"what {number}?"
        images = RowImages(Patches(), prompt, find_images(names, place, "a row"), "a row") if names else None
        ids = images.read()[0] if images else [tiny.tokenizer().get_vocab()[letter] for letter in prompt]
        found.append(Example((*ids, 5, 6, 2), len(ids), prompt, ("ab",), f"row {number}", images=images))
    return found


def test_patches_follow_one_another_in_the_order_of_the_rows(examples):
    batch = collate(examples, [2, 1, 0], 0)
    assert batch.extra[1] is None
    joined = join_images(batch.extra, batch.input_ids.shape[1])
    grid = joined["image_grid_thw"]
    assert grid.tolist() == [[1, 4, 6], [1, 2, 4], [1, 4, 4]]
    assert len(joined["pixel_values"]) == grid.prod(-1).sum()
    assert joined["mm_token_type_ids"].shape == batch.input_ids.shape
    assert joined["mm_token_type_ids"].sum(1).tolist() == [8, 0, 4]
    assert ((batch.input_ids == PAD) == joined["mm_token_type_ids"].bool()).all()


def test_joined_tensors_of_other_sizes_are_filled_up_with_zeros():
    rows = [ImageInputs({}, {"pixels": torch.full((1, count, 2), 1.0 + count)}, "") for count in (1, 3)]
    found = join_images(rows, 4)["pixels"]
    assert found[:, :, 0].tolist() == [[2.0, 0.0, 0.0], [4.0, 4.0, 4.0]]


def test_a_row_of_a_batch_is_the_row_alone(qwen, examples):
    """Hidden states follow from the row and its images, in whatever company and order it is read."""
    with torch.no_grad():
        for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
            batch = collate(examples, order, 0)
            together = qwen.hidden(batch.input_ids, batch.attention_mask, batch.extra)
            for place, row in enumerate(order):
                alone = collate(examples, [row], 0)
                hidden = qwen.hidden(alone.input_ids, alone.attention_mask, alone.extra)[0]
                torch.testing.assert_close(together[place, : len(hidden)], hidden, rtol=1e-5, atol=1e-5)


def test_answers_go_on_from_the_positions_that_images_take(qwen, examples):
    """In M-RoPE an image takes fewer positions than tokens; greedy answers equal transformers' generate."""
    asked = [GenerationRequest(one.question, at, (0,), images=one.images) for at, one in enumerate(examples)]
    found = {at: one for at, _, one in answers(qwen, asked, GenerationConfig(max_new_tokens=10, temperature=0.0))}
    for at, example in enumerate(examples):
        ids = torch.tensor([example.question])
        extra = {}
        if example.images is not None:
            inputs = example.images.inputs(example.prompt_length)
            extra = {**inputs.pixels, **{name: value[None] for name, value in inputs.tokens.items()}}
        with torch.no_grad():
            whole = qwen.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, **extra
            )[0, ids.shape[1] :]
        assert [*found[at].tokens] == whole.tolist()


def test_the_offset_of_positions_is_the_plane_s_larger_side_less_its_tokens(qwen, examples):
    """4 tokens of 2 by 2 take 2 positions; 6 of 2 by 3 take 3, and 2 of 1 by 2 take 2."""
    found = []
    for one in examples:
        batch = collate([one], [0], 0)
        if one.images is not None:
            with torch.no_grad():
                qwen.hidden(batch.input_ids, batch.attention_mask, batch.extra)
            found.append(position_offset(qwen.model.model))
    assert found == [2 - 4, (3 - 6) + (2 - 2)]
    assert position_offset(tiny.model().model) == 0


def test_an_image_that_changed_is_not_read_as_the_one_that_was_found(tmp_path):
    from kdcli.errors import IntegrityError

    path = vision.picture(tmp_path / "a.png", 1)
    images = RowImages(Patches(), "#a", find_images(["a.png"], tmp_path, "rows line 1"), "rows line 1")
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(IntegrityError, match=r'IMG-04.*rows line 1: image "a.png" has changed'):
        images.inputs(8)
