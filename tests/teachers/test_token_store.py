import pytest
import torch

from kdcli.data.batching import collate
from kdcli.errors import IntegrityError
from kdcli.teachers.token_store import TokenStore, sequence_keys
from running import dataset

NAMES = ["a", "b"]


def entry(key, rows, start):
    values = torch.arange(start, start + rows, dtype=torch.float32)
    return key, {"hidden": torch.stack([values, -values], 1)}


@pytest.fixture
def store(tmp_path):
    made = TokenStore(tmp_path)
    made.add([entry("a", 3, 0), entry("b", 2, 10)])
    made.add([entry("c", 1, 20)])
    return made


def test_sequences_come_back_in_the_order_asked_for(store):
    for found in (store, TokenStore(store.folder)):
        assert found.read(["c", "a"], ["hidden"])["hidden"][:, 0].tolist() == [20.0, 0.0, 1.0, 2.0]
        assert len(found) == 3
        assert "b" in found
        assert "d" not in found


def test_a_sequence_that_is_not_there_is_named_as_such(store):
    with pytest.raises(IntegrityError, match="not in the teacher cache"):
        store.read(["d"], ["hidden"])


def test_keys_follow_from_tokens_and_mask_alone():
    examples = dataset(6).examples
    alone = [sequence_keys(collate(examples, [index], 0))[0] for index in range(6)]
    assert sequence_keys(collate(examples, [4, 1, 3], 2)) == [alone[4], alone[1], alone[3]]
    assert len(set(alone)) == 6
    moved = examples[0].__class__(examples[0].ids, examples[0].prompt_length + 1, "", (), "")
    assert sequence_keys(collate([moved], [0], 0))[0] != alone[0]


@pytest.mark.parametrize("file", ["tokens.safetensors", "index.json"])
def test_every_damage_is_found_and_only_its_shard_is_dropped(store, file):
    path = store.folder / "shard-00000" / file
    raw = bytearray(path.read_bytes())
    for at in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert len(list(store.verify())) == 1
    assert store.drop_damaged() == ["shard-00000"]
    assert "a" not in store
    assert "c" in store
    store.add([entry("a", 1, 5)])
    assert TokenStore(store.folder).read(["a"], ["hidden"])["hidden"][0, 0] == 5.0
