"""What models of images and text, and rows with images, do not go with: each is refused in one line, at the start."""

import json

import pytest

import tiny
import vision
from kdcli.config.schema import DistillConfig, EvalConfig, FederateConfig, GenerateConfig
from kdcli.config.sections import DataConfig
from kdcli.distill.generate import generate
from kdcli.distill.plan import plan_distill
from kdcli.distill.run import distill
from kdcli.errors import KDError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import silent
from kdcli.federated.federate import federate
from kdcli.loading.session import Session


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("refused")
    vision.folder(found / "T", "llava", seed=1, width=24)
    vision.folder(found / "S", "llava", seed=2)
    vision.folder(found / "I", "idefics3", seed=3)
    tiny.folder(found / "L")
    tiny.folder(found / "M", seed=4)
    vision.rows(found / "train.jsonl", 4)
    tokens = vision.processor("llava").tokenizer
    tiny.model(vocab=len(tokens)).save_pretrained(found / "B")
    tokens.save_pretrained(found / "B")
    words = [*tiny.WORDS[:4], *reversed(tiny.WORDS[4:]), "<image>"]
    tiny.folder(found / "W", words=words)
    turned = vision.processor("llava")
    turned.image_processor.do_normalize = False
    vision.model("llava", seed=5).save_pretrained(found / "U")
    turned.save_pretrained(found / "U")
    return found


def settings(place, **more):
    named = {"student": str(place / "S"), "teacher": str(place / "T"), "loss": "fkl", "output": str(place / "out")}
    given = {name: value.format(place=place) if isinstance(value, str) else value for name, value in more.items()}
    found = {**named, **given, "data": {"train": str(place / "train.jsonl"), **more.get("data", {})}}
    return DistillConfig.model_validate(found)


REFUSED = {
    "a text-only student": ({"student": "{place}/L", "teacher": "{place}/M"}, "IMG-01", "train.jsonl line 1"),
    "a text-only teacher": ({"teacher": "{place}/B"}, "IMG-06", "the teacher reads text alone"),
    "other tokens": (
        {"teacher": "{place}/W", "loss": "ce+1.5*uld"},
        "IMG-06",
        "of another tokenizer",
    ),
    "another family": ({"teacher": "{place}/I"}, "IMG-06", "prepare them in different ways"),
    "another processor": ({"teacher": "{place}/U"}, "IMG-06", "prepare them in different ways"),
    "several teachers": ({"teacher": "{place}/T+{place}/U"}, "IMG-06", "several teachers"),
    "a rounded teacher": ({"teacher_quantization": "int8"}, "IMG-06", "a rounded teacher"),
    "a server": ({"teacher": "http://127.0.0.1:9/v1", "server": {"model": "m"}}, "SERVE-10", "server"),
    "a random student": ({"student": "random:layers=1"}, "IMG-06", "made on the spot"),
    "a cut student": ({"student": "cut:layers=1"}, "IMG-06", "made on the spot"),
    "its own texts": ({"loss": "fkl@student"}, "IMG-06", "@student, which writes or mixes texts"),
    "the teacher's texts": ({"loss": "ce@teacher"}, "IMG-06", "@teacher, which writes or mixes texts"),
    "an adapter": ({"lora": {"rank": 2}}, "IMG-06", "an adapter"),
    "several processes": ({"hardware": {"gpus": 2}}, "IMG-06", "several processes"),
    "shards": ({"hardware": {"shard": "fsdp2"}}, "IMG-06", "shards"),
    "kept zeros": ({"train": {"keep_zeros": True}}, "IMG-06", "zeros that are kept"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_is_refused_before_a_weight_is_read(place, name, monkeypatch):
    more, code, what = REFUSED[name]
    monkeypatch.setattr("kdcli.models.load.load_weights", lambda *given: pytest.fail("weights were read"))
    with pytest.raises(KDError) as caught:
        distill(settings(place, **more), silent)
    lines = [str(fault) for fault in (caught.value, *caught.value.also)]
    assert any(f"[{code}]" in line and what in line for line in lines), lines
    assert not (place / "out").exists()


def test_metrics_that_do_not_read_images_are_refused(place):
    for metric in ("on_policy_kl", "macro_f1"):
        options = {"metrics": [metric, "perplexity"]}
        asked = {"model": str(place / "S"), "teacher": str(place / "T"), "data": {"eval": str(place / "train.jsonl")}}
        with pytest.raises(KDError, match=r"IMG-06.*Fix: give --metric perplexity"):
            evaluate_run(EvalConfig.model_validate({**asked, "evaluation": options}), silent)


def test_a_text_only_model_is_not_measured_on_rows_with_images(place):
    asked = {"model": str(place / "L"), "data": {"eval": str(place / "train.jsonl")}}
    with pytest.raises(KDError, match=r"IMG-01.*line 1: the row has 1 image, and text alone is read here"):
        evaluate_run(EvalConfig.model_validate({**asked, "evaluation": {"metrics": ["perplexity"]}}), silent)


ROWS = {
    "missing": (["nowhere.png"], "IMG-02", 'image "nowhere.png" is not there'),
    "a folder": (["pictures"], "IMG-02", "is not there"),
    "no image": (["text.png"], "IMG-02", "cannot be decoded"),
    "half an image": (["half.png"], "IMG-02", "cannot be decoded"),
    "many pixels": (["wide.png"], "IMG-02", "more than 67,108,864"),
    "many bytes": (["long.png"], "IMG-02", "is larger than 32 MiB"),
    "too many": (["pictures/0-0-0.png"] * 2, "IMG-03", "a place for 1 of 2 images"),
    "no path": ([7], "DATA-06", "must be a list of paths"),
}


@pytest.fixture(scope="module")
def spoilt(place):
    whole = (place / "pictures/0-0-0.png").read_bytes()
    (place / "half.png").write_bytes(whole[: len(whole) // 2])
    (place / "text.png").write_text("no image")
    with (place / "long.png").open("wb") as file:
        file.truncate(33 * 2**20)
    wide = bytearray(whole)
    wide[16:24] = (10_000).to_bytes(4, "big") * 2
    wide[29:33] = _crc(bytes(wide[12:29]))
    (place / "wide.png").write_bytes(bytes(wide))
    return place


def _crc(chunk):
    import zlib

    return zlib.crc32(chunk).to_bytes(4, "big")


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_image_is_one_line_with_row_and_file_and_can_be_left_out(spoilt, name):
    images, code, what = ROWS[name]
    bad = {**vision.row(["pictures/0-0-0.png"], "what?", "b"), "images": images}
    lines = [vision.row(["pictures/0-0-0.png"], "what?", "a"), bad]
    (spoilt / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    session = Session()
    reader = session.inspect(str(spoilt / "S"))
    with pytest.raises(KDError) as caught:
        session.data(str(spoilt / "bad.jsonl"), reader, DataConfig(), role="train", images=True)
    assert caught.value.code == code
    assert what in str(caught.value)
    assert "line 2" in str(caught.value)
    kept = session.data(str(spoilt / "bad.jsonl"), reader, DataConfig(skip_bad=True), role="train", images=True)
    assert len(kept) == 1
    assert any("left out" in note and what in note for note in kept.notes)


def test_an_answer_that_spells_the_token_of_an_image_is_refused(place):
    bad = vision.row(["pictures/0-0-0.png"], "what?", "an <image>")
    (place / "spelt.jsonl").write_text(json.dumps(bad) + "\n")
    session = Session()
    with pytest.raises(KDError, match=r"IMG-03.*never a label"):
        session.data(str(place / "spelt.jsonl"), session.inspect(str(place / "S")), DataConfig(), role="train",
                     images=True)  # fmt: skip


def test_rows_of_prompt_and_response_have_images_in_front_of_the_prompt(place):
    row = {"prompt": "what?", "response": "a", "images": ["pictures/0-0-0.png"]}
    (place / "plain.jsonl").write_text(json.dumps(row) + "\n")
    session = Session()
    reader = session.inspect(str(place / "S"))
    found = session.data(str(place / "plain.jsonl"), reader, DataConfig(template="chat"), role="train", images=True)
    assert reader.tokenizer.decode(found.examples[0].ids) == "u:" + "<image>" * 4 + "what?a:a</s>"
    with pytest.raises(KDError, match=r"IMG-03.*a place for 0 of 1 image"):
        session.data(str(place / "plain.jsonl"), reader, DataConfig(), role="train", images=True)


def test_commands_on_text_alone_refuse_rows_with_images(place):
    asked = {"teacher": str(place / "T"), "student": str(place / "S"), "output": str(place / "made"),
             "data": {"train": str(place / "train.jsonl")}}  # fmt: skip
    with pytest.raises(KDError, match=r"IMG-01"):
        generate(GenerateConfig.model_validate(asked), silent)
    session = Session()
    reader = session.inspect(str(place / "S"))
    with pytest.raises(KDError, match=r"IMG-01"):
        session.data(str(place / "train.jsonl"), reader, DataConfig(), role="train")


def test_federated_clients_are_refused_as_they_do_not_find_the_pictures(place):
    asked = settings(place).model_dump(include={"student", "teacher", "loss", "data"})
    config = FederateConfig.model_validate(
        {**asked, "output": str(place / "fed"), "federation": {"clients": 2, "rounds": 1}, "train": {"max_steps": 1}}
    )
    with pytest.raises(KDError, match=r"IMG-06.*clients do not find"):
        federate(config, silent)


def test_a_folder_without_processor_or_with_code_is_refused_by_name(place, tmp_path):
    bare = tmp_path / "bare"
    vision.model("llava").save_pretrained(bare)
    vision.processor("llava").tokenizer.save_pretrained(bare)
    with pytest.raises(KDError, match=r"MOD-17.*no processor for the images of LlavaForConditionalGeneration"):
        Session().inspect(str(bare))
    vision.processor("llava").save_pretrained(bare)
    vision.picture(tmp_path / "a.png", 1)
    (tmp_path / "rows.jsonl").write_text(json.dumps(vision.row(["a.png"], "what?", "a")) + "\n")
    found = json.loads((bare / "processor_config.json").read_text())
    (bare / "processor_config.json").write_text(json.dumps({**found, "auto_map": {"AutoProcessor": "x.Y"}}))
    session = Session()
    with pytest.raises(KDError, match=r"IMG-05.*needs code from the folder"):
        session.data(str(tmp_path / "rows.jsonl"), session.inspect(str(bare)), DataConfig(), role="train", images=True)


def test_a_plan_is_refused_as_it_would_leave_the_image_encoder_out(place):
    with pytest.raises(KDError, match=r"IMG-06.*what an image encoder keeps is not known"):
        plan_distill(settings(place, train={"max_steps": 2}))
