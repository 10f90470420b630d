import json

import tiny
from kdcli.config.schema import DataConfig
from kdcli.data.dataset import load_dataset
from kdcli.distill.plan import Preview, preview
from kdcli.end_tokens import EndTokens


def test_preview_shows_prompt_target_and_end_token(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = [
        {"prompt": "say a:", "completion": "a."},
        {"prompt": "b", "completion": "b\x1b"},
        {"prompt": "c", "completion": "c"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny.tokenizer([*tiny.WORDS, "\x1b"])
    dataset = load_dataset(str(path), tokenizer, DataConfig(), ends=EndTokens((2,)))
    shown = preview(dataset, tokenizer, 2)
    assert shown[0] == Preview("r.jsonl line 1", (("say a:", False), ("a.</s>", True)), tokens=9, targets=3)
    assert shown[1].segments == (("b", False), ("b\\x1b</s>", True))
    assert len(preview(dataset, tokenizer, 9)) == 3
