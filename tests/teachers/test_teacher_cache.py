import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import tiny
from kdcli.config.schema import CacheConfig, HardwareConfig, TrainConfig
from kdcli.data.batching import collate
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.diagnostics.compare_teachers import between_models
from kdcli.distill.run import distill
from kdcli.errors import (
    ExperimentChangedError,
    InputError,
    IntegrityError,
    InterruptedRunError,
    MachineError,
    UsageError,
)
from kdcli.events import silent
from kdcli.models.load import load_model
from kdcli.sources.base import SourceContext
from kdcli.sources.curriculum import difficulties
from kdcli.storage import atomic
from kdcli.teachers.cache_build import _Build
from kdcli.teachers.cache_files import ERRORS, read_key
from kdcli.teachers.cached import open_cache
from kdcli.teachers.load import cache, plan_cache
from shell import kd
from study import Heard, Parts, tree

CPU = HardwareConfig(device="cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("cache"))


def settings(parts, name, **changes):
    return CacheConfig(
        **{
            "teacher": str(parts.teacher),
            "data": parts.data(),
            "hardware": CPU,
            "output": str(parts.root / name),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def exact(parts):
    return cache(settings(parts, "exact"), silent)


@pytest.fixture(scope="module")
def compact(parts):
    return cache(settings(parts, "compact", kind="compact", top_k=8), silent)


def trained(parts, name, loss, folder=None, **train):
    config = parts.run(name, loss, **train).model_copy(update={"teacher_cache": folder and str(folder)})
    return distill(config, silent)


@pytest.mark.parametrize("loss", ["fkl", "0.5*ce+0.5*akl", "atkd", "jsd:beta=0.3", "mse_logits"])
def test_the_exact_cache_trains_the_same_student_bit_for_bit(parts, exact, loss):
    slug = "".join(letter for letter in loss if letter.isalnum())
    live, cached = trained(parts, f"live-{slug}", loss), trained(parts, f"cached-{slug}", loss, exact.folder)
    assert (live.folder / "metrics.jsonl").read_bytes() == (cached.folder / "metrics.jsonl").read_bytes()
    ours, theirs = (load_file(run.model / "model.safetensors") for run in (live, cached))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert live.evaluation.estimates == cached.evaluation.estimates
    assert live.identity == cached.identity
    tokens = [json.loads((run.folder / "status.json").read_bytes())["teacher_tokens"] for run in (live, cached)]
    assert tokens[0] > 0
    assert tokens[1] == 0


def test_under_bf16_the_cache_keeps_what_the_head_would_have_read(parts):
    half = HardwareConfig(device="cpu", dtype="bf16")
    made = cache(settings(parts, "autocast", hardware=half), silent)
    runs = []
    for folder in (None, str(made.folder)):
        config = parts.run(f"bf16-{folder is None}", "akl").model_copy(
            update={"hardware": half, "teacher_cache": folder}
        )
        runs.append(distill(config, silent))
    assert [run.identity["teacher.seen"] for run in runs] == ["whole", "whole"]
    assert (runs[0].folder / "metrics.jsonl").read_bytes() == (runs[1].folder / "metrics.jsonl").read_bytes()


def test_the_teacher_reads_every_token_once(parts, exact):
    plan = plan_cache(settings(parts, "unwritten"))
    assert exact.teacher_tokens <= plan.teacher_tokens
    before = tree(exact.folder)
    again = cache(settings(parts, "exact"), silent)
    assert (again.added, again.teacher_tokens) == (0, exact.teacher_tokens)
    assert {**tree(exact.folder), ".lock": b""} == {**before, ".lock": b""}
    assert not Path(parts.root / "unwritten").exists()


def test_half_precision_is_another_experiment(parts):
    made = cache(settings(parts, "half", store_dtype="bf16"), silent)
    run = trained(parts, "from-half", "fkl", made.folder)
    assert run.identity["teacher.seen"] == "exact in bfloat16"
    live = trained(parts, "from-live", "fkl")
    assert live.identity["teacher.seen"] == "whole"
    ours, theirs = (load_file(one.model / "model.safetensors") for one in (live, run))
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-2


def test_a_compact_cache_trains_what_is_defined_on_it(parts, compact):
    run = trained(parts, "compact-run", "0.5*ce+0.5*akl", compact.folder)
    assert run.identity["teacher.seen"] == "top 8 and the rest in one bin"
    assert run.evaluation.estimates["kl_to_teacher"].mean > 0, "measured against the whole teacher"
    with pytest.raises(UsageError, match="atkd is not defined on a compact cache: it reads single logits"):
        trained(parts, "refused", "atkd", compact.folder)
    errors = json.loads((compact.folder / ERRORS).read_bytes())
    assert 0 < errors["fkl"]["lost"] < 1
    assert errors["fkl"]["bins"] <= errors["fkl"]["whole"]


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"teacher": "student"}, "teacher"),
        ({"max_length": 64}, "max_length"),
        ({"template": "Answer: {instruction}"}, "template"),
        ({"matmul_precision": "medium"}, "matmul_precision"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_field(parts, exact, changes, field):
    config = parts.run("other", "fkl").model_copy(update={"teacher_cache": str(exact.folder)})
    if field == "teacher":
        config = config.model_copy(update={"teacher": str(parts.student), "student": str(parts.teacher)})
    elif field in ("max_length", "template"):
        config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    else:
        config = config.model_copy(update={"hardware": config.hardware.model_copy(update=changes)})
    with pytest.raises(ExperimentChangedError, match=f"made with {field} "):
        distill(config, silent)
    assert not Path(config.output).exists()


def test_rows_that_are_not_in_it_are_counted(parts):
    made = cache(settings(parts, "short", data=parts.data().model_copy(update={"limit": 5})), silent)
    with pytest.raises(InputError, match=r"of 2\d rows are not in the cache"):
        trained(parts, "too-many", "fkl", made.folder)


def test_a_killed_build_goes_on_and_a_damaged_shard_is_built_again(parts, exact, monkeypatch):
    monkeypatch.setattr("kdcli.teachers.cache_build._SHARD_BYTES", 400)
    monkeypatch.setattr("kdcli.teachers.cache_build._MICRO_TOKENS", 64)
    whole, config = _Build._take, settings(parts, "killed")

    def dying(self, batch):
        if len(self.store) >= 8:
            raise SystemExit
        whole(self, batch)

    monkeypatch.setattr(_Build, "_take", dying)
    with pytest.raises(SystemExit):
        cache(config, silent)
    monkeypatch.setattr(_Build, "_take", whole)
    folder = Path(config.output)
    kept = tree(folder)
    shard = sorted(folder.glob("shard-*"))[1]
    (shard / "tokens.safetensors").write_bytes(b"x" * 99)
    heard = Heard()
    record = cache(config, heard)
    assert record.sequences == exact.sequences
    assert 0 < record.added < record.sequences
    assert any("was damaged" in text for text in heard.messages("warning"))
    first = sorted(folder.glob("shard-*"))[0]
    assert (first / "index.json").read_bytes() == kept[f"{first.name}/index.json"]
    run = trained(parts, "from-mended", "fkl", folder)
    assert load_file(run.model / "model.safetensors").keys()


def test_damage_never_reaches_a_loss(parts):
    made = cache(settings(parts, "bitrot"), silent)
    path = next(made.folder.glob("shard-*")) / "tokens.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 8
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="digest differs"):
        trained(parts, "from-bitrot", "fkl", made.folder)


def test_a_signal_saves_what_is_done(parts, monkeypatch):
    monkeypatch.setattr("kdcli.teachers.cache_build._MICRO_TOKENS", 64)
    monkeypatch.setattr("kdcli.signals.StopRequest.signal_number", 15, raising=False)
    monkeypatch.setattr("kdcli.signals.StopRequest.__init__", lambda self: setattr(self, "_previous", {}))
    with pytest.raises(InterruptedRunError, match="saved") as caught:
        cache(settings(parts, "stopped"), silent, command="kd cache ...")
    assert caught.value.exit_code == 143
    assert list((parts.root / "stopped").glob("shard-*"))


def test_the_command_says_what_it_would_take_and_what_it_took(parts):
    line = ["cache", "--teacher", str(parts.teacher), "--data", str(parts.train), "--device", "cpu"]
    planned = kd(*line, "--dry-run", "--json")
    assert planned.code == 0
    assert json.loads(planned.out)["bytes"] > 0
    made = kd(*line, "-o", str(parts.root / "typed"), "--json")
    assert json.loads(made.out)["sequences"] == json.loads(planned.out)["sequences"]
    refused = kd(*line, "-o", str(parts.root / "typed"), "--store-dtype", "fp16")
    assert refused.code == 8
    assert "dtype float32, here it is float16" in refused.error_lines[0]
    assert kd(*line, "--kind", "compact", "--top-k", "5000", "--dry-run").code == 2


def stable(folder):
    """What a cache holds, without its lock."""
    return {name: data for name, data in tree(folder).items() if name != ".lock"}


def test_a_shard_that_could_not_be_flushed_is_not_written_twice(parts, exact, monkeypatch):
    config, whole, refused = settings(parts, "flush"), atomic.flush_folder, []

    def refuse_once(folder):
        if list(folder.glob("shard-*")) and not refused:
            refused.append(folder)
            raise OSError(errno.EIO, "Input/output error")
        whole(folder)

    monkeypatch.setattr(atomic, "flush_folder", refuse_once)
    with pytest.raises(MachineError, match="Input/output error"):
        cache(config, silent)
    assert [path.name for path in Path(config.output).glob("shard-*")] == ["shard-00000"]
    assert cache(config, silent).teacher_tokens == exact.teacher_tokens
    assert stable(Path(config.output)) == stable(exact.folder)


def edited(old, new):
    def change(folder):
        path = folder / "cache.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def flipped(name):
    def change(folder):
        path = folder / name
        raw = bytearray(path.read_bytes())
        raw[-9] ^= 1
        path.write_bytes(raw)

    return change


def foreign_shard(folder):
    """A shard of another teacher's cache, whole in itself."""
    shard = folder / "shard-00000"
    manifest = atomic.verify_folder(shard)
    content = {name: (shard / name).read_bytes() for name in manifest["files"]}
    atomic.commit_folder(
        shard, lambda target: [(target / name).write_bytes(data) for name, data in content.items()] and None,
        {**{name: value for name, value in manifest.items() if name not in ("files", "schema")}, "of": "0" * 64},
    )  # fmt: skip


DAMAGE = {
    "scale": edited('"scale": 1.0', '"scale": 9.0'),
    "digest renamed": edited('"digest"', '"digesu"'),
    "no cache.json": lambda folder: (folder / "cache.json").unlink(),
    "cache.json": lambda folder: (folder / "cache.json").write_text("{"),
    "head": flipped("head/head.safetensors"),
    "no head": lambda folder: shutil.rmtree(folder / "head"),
    "no manifest of the head": lambda folder: (folder / "head" / "manifest.json").unlink(),
    "manifest of the head": flipped("head/manifest.json"),
    "shard": flipped("shard-00000/tokens.safetensors"),
    "manifest of a shard": flipped("shard-00000/manifest.json"),
    "shard of another": foreign_shard,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_every_damage_to_a_cache_is_found_and_the_same_line_mends_it(parts, exact, name, monkeypatch):
    monkeypatch.chdir(parts.root)
    folder = Path("damaged") / name
    shutil.copytree(exact.folder, folder)
    assert kd("verify", str(folder)).code == 0
    DAMAGE[name](folder)
    assert kd("verify", str(folder)).code == 6
    key = read_key(exact.folder)["key"]
    with pytest.raises((IntegrityError, InputError)):
        open_cache(folder, key, torch.device("cpu"))
    cache(settings(parts, f"damaged/{name}"), silent)
    assert stable(folder) == stable(exact.folder)
    assert kd("verify", str(folder)).code == 0


def test_what_a_compact_cache_loses_is_known_after_every_end(parts, compact):
    folder = parts.root / "losing"
    shutil.copytree(compact.folder, folder)
    before = (folder / ERRORS).read_bytes()
    (folder / ERRORS).write_text("{}")
    assert kd("verify", str(folder)).code == 6
    (folder / ERRORS).unlink()
    cache(settings(parts, "losing", kind="compact", top_k=8), silent)
    assert (folder / ERRORS).read_bytes() == before


def test_a_log_of_an_error_does_not_make_a_cache_another_folder(parts):
    folder = parts.root / "logged"
    folder.mkdir()
    (folder / "error.log").write_text("Traceback")
    assert cache(settings(parts, "logged"), silent).added > 0


def test_an_older_cache_without_digests_is_read_and_extended(parts, exact):
    """Its first file counts what the teacher has read, and its shards do not say what they belong to."""
    folder = parts.root / "older"
    shutil.copytree(exact.folder, folder)
    found = read_key(folder)
    old = {"kind": found["kind"], "key": found["key"], "head": found["head"], "teacher_tokens": 77}
    (folder / "cache.json").write_text(json.dumps(old, indent=1))
    for part in folder.glob("*/manifest.json"):
        manifest = json.loads(part.read_text())
        rest = {name: value for name, value in manifest.items() if name not in ("of", "teacher_tokens", "digest")}
        part.write_text(json.dumps({**rest, "schema": 1}))
    assert open_cache(folder, found["key"], torch.device("cpu")).store
    record = cache(settings(parts, "older"), silent)
    assert (record.added, record.teacher_tokens) == (0, 77)


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A teacher whose head has 17 rows more than there are tokens, and a student that equals it."""
    made = Parts(tmp_path_factory.mktemp("padded"))
    for name in ("teacher", "student"):
        tiny.folder(made.root / name, seed=1, vocab=64, hidden_size=16)
    return made


@pytest.mark.parametrize("kind", ["exact", "compact", None])
def test_rows_of_the_head_without_a_token_have_no_mass(padded, kind):
    options = {"kind": "compact", "top_k": 8} if kind == "compact" else {}
    folder = None if kind is None else cache(settings(padded, str(kind), **options), silent).folder
    run = trained(padded, f"{kind}-run", "fkl", folder, max_steps=1)
    assert abs(json.loads((run.folder / "metrics.jsonl").read_bytes().splitlines()[0])["loss"]) < 1e-6
    if kind == "compact":
        for shard in folder.glob("shard-*"):
            assert load_file(shard / "tokens.safetensors")["ids"].max() < len(tiny.WORDS)


def test_a_compact_cache_leaves_a_rest_of_tokens_that_exist(padded):
    with pytest.raises(UsageError, match=r"47 of 47 tokens leave no rest.*at most 46"):
        cache(settings(padded, "all", kind="compact", top_k=47), silent)
    made = cache(settings(padded, "most", kind="compact", top_k=46), silent)
    run = trained(padded, "most-run", "rkl", made.folder, max_steps=1)
    assert abs(json.loads((run.folder / "metrics.jsonl").read_bytes().splitlines()[0])["loss"]) < 1e-6


def test_every_reader_of_a_model_sees_the_ids_that_have_a_token(padded):
    """No consumer chooses: the model itself knows how many rows of its head are real."""
    model = load_model(str(padded.teacher), device=torch.device("cpu"), role="teacher")
    assert (model.vocab, model.head.rows) == (len(tiny.WORDS), 64)
    ids = torch.arange(4, 12)[None]
    hidden = model.hidden(ids, torch.ones_like(ids))[0]
    logits = hidden @ model.head.weight[: len(tiny.WORDS)].T
    torch.testing.assert_close(model.logits(hidden), logits)
    dataset = TokenDataset((Example(tuple(ids[0].tolist()), 1, "", (), "row"),))
    expected = -torch.log_softmax(logits[:-1].double(), -1).gather(1, ids[0, 1:, None]).mean().item()
    context = SourceContext(dataset, TrainConfig(), pad_id=0, teacher=model)
    assert difficulties("teacher_nll", context) == [pytest.approx(expected, rel=1e-5)]
    batch = collate(dataset.examples, [0], 0)
    wider = load_model(
        str(tiny.folder(padded.root / "wider", seed=1, vocab=80)), device=torch.device("cpu"), role="teacher"
    )
    one, two = (
        torch.log_softmax((side.hidden(ids[:, :-1], torch.ones_like(ids[:, :-1]))[0] @ side.head.weight[:47].T), -1)
        for side in (model, wider)
    )
    kl = (one.exp() * (one - two)).sum(1).mean().item()
    assert between_models(model, wider, [batch]).kl == pytest.approx(kl, rel=1e-4)


def rewritten(folder: Path, change) -> None:
    """Change a cache's key as if it had been made so."""
    record = json.loads((folder / "cache.json").read_text())
    del record["digest"]
    change(record)
    record["digest"] = atomic.digest_record(record)
    (folder / "cache.json").write_text(json.dumps(record))


def test_a_cache_says_what_computed_it(exact):
    record = read_key(exact.folder)
    assert record["key"]["transformers"] == transformers.__version__
    assert record["made_with"] == {"torch": torch.__version__, "attention": "sdpa"}


def test_a_cache_of_another_version_of_transformers_is_refused(parts, exact, tmp_path):
    folder = shutil.copytree(exact.folder, tmp_path / "cache")
    rewritten(folder, lambda record: record["key"].update(transformers="5.19.9"))
    what = r"CACHE-03.*made with transformers 5.19.9, here it is .* Fix: install transformers==5.19.9"
    with pytest.raises(ExperimentChangedError, match=what):
        trained(parts, "of-another-version", "fkl", folder)
    with pytest.raises(ExperimentChangedError, match="CACHE-03"):
        cache(settings(parts, "unused", output=str(folder)), silent)


def test_an_older_cache_that_names_no_version_is_read_and_added_to_with_a_warning(parts, exact, tmp_path):
    folder = shutil.copytree(exact.folder, tmp_path / "cache")
    rewritten(folder, lambda record: (record["key"].pop("transformers"), record.pop("made_with")))
    old = atomic.digest_record(read_key(folder)["key"])
    for manifest in folder.glob("*/manifest.json"):
        table = json.loads(manifest.read_text())
        del table["digest"]
        table["of"] = old
        manifest.write_text(json.dumps(table | {"digest": atomic.digest_record(table)}))
    heard = Heard()
    again = cache(settings(parts, "unused", output=str(folder)), heard)
    assert again.added == 0
    assert any("does not say which transformers made the cache" in line for line in heard.messages("warning"))
    assert trained(parts, "of-an-older-cache", "fkl", folder).identity["teacher.seen"] == "whole"
