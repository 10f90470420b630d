"""What ``kd plan`` predicts for ten common pairs under ddp, fsdp2 and zero3, from their configurations alone.

Run by hand; no weight is read or written, and no GPU need be here::

    python benchmarks/plan.py                            # eight GPUs of 80 GiB, rows of 1,024 tokens

The sizes are those of the published config.json files of Qwen2.5 and Llama 3.
"""

import argparse
import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from kdcli.config.schema import DistillConfig
from kdcli.distill.plan import plan_distill

QWEN, LLAMA = 151_936, 128_256
MODELS = {
    # name: family, layers, width, heads, KV heads, FFN width, entries of the vocabulary, tied head
    "Qwen2.5 0.5B": (Qwen2Config, 24, 896, 14, 2, 4_864, QWEN, True),
    "Qwen2.5 1.5B": (Qwen2Config, 28, 1_536, 12, 2, 8_960, QWEN, True),
    "Qwen2.5 3B": (Qwen2Config, 36, 2_048, 16, 2, 11_008, QWEN, True),
    "Qwen2.5 7B": (Qwen2Config, 28, 3_584, 28, 4, 18_944, 152_064, False),
    "Qwen2.5 14B": (Qwen2Config, 48, 5_120, 40, 8, 13_824, 152_064, False),
    "Qwen2.5 32B": (Qwen2Config, 64, 5_120, 40, 8, 27_648, 152_064, False),
    "Qwen2.5 72B": (Qwen2Config, 80, 8_192, 64, 8, 29_568, 152_064, False),
    "Llama 3.2 1B": (LlamaConfig, 16, 2_048, 32, 8, 8_192, LLAMA, True),
    "Llama 3.2 3B": (LlamaConfig, 28, 3_072, 24, 8, 8_192, LLAMA, True),
    "Llama 3.1 8B": (LlamaConfig, 32, 4_096, 32, 8, 14_336, LLAMA, False),
    "Llama 3.1 70B": (LlamaConfig, 80, 8_192, 64, 8, 28_672, LLAMA, False),
}
PAIRS = [
    ("Qwen2.5 0.5B", "Qwen2.5 7B"), ("Qwen2.5 1.5B", "Qwen2.5 7B"), ("Qwen2.5 3B", "Qwen2.5 14B"),
    ("Qwen2.5 0.5B", "Qwen2.5 32B"), ("Qwen2.5 7B", "Qwen2.5 32B"), ("Qwen2.5 7B", "Qwen2.5 72B"),
    ("Llama 3.2 1B", "Llama 3.1 8B"), ("Llama 3.2 3B", "Llama 3.1 8B"), ("Llama 3.2 1B", "Llama 3.1 70B"),
    ("Llama 3.1 8B", "Llama 3.1 70B"),
]  # fmt: skip


def config(name: str) -> PreTrainedConfig:
    family, layers, width, heads, groups, inner, vocab, tied = MODELS[name]
    return family(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, intermediate_size=inner, max_position_embeddings=4_096, tie_word_embeddings=tied,
        architectures=[family.__name__.replace("Config", "ForCausalLM")], bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip


def write(folder: Path, length: int) -> None:
    """Write a folder for each model, without weights, and rows as long as what is learnt from."""
    letters = [chr(97 + index) for index in range(26)]
    for family, vocab in ((Qwen2Config, QWEN), (LlamaConfig, LLAMA)):
        words = ["<pad>", "<s>", "</s>", "<unk>", *letters]
        words += [f"word{index}" for index in range(len(words), vocab)]
        core = Tokenizer(BPE({word: index for index, word in enumerate(words)}, [], unk_token="<unk>"))
        core.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
        )
        for name, shape in MODELS.items():
            if shape[0] is family:
                config(name).save_pretrained(folder / name)
                tokenizer.save_pretrained(folder / name)
    half = "ab" * (length // 4)
    row = json.dumps({"prompt": half, "completion": half}) + "\n"
    (folder / "rows.jsonl").write_text(64 * row, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--memory", type=int, default=80, help="GiB of one GPU")
    parser.add_argument("--length", type=int, default=1_024)
    parser.add_argument("--loss", default="akl")
    options = parser.parse_args()
    print("| student | teacher | ddp | fsdp2 | zero3 | what makes fsdp2 fit |")
    print("|---|---|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.length)
        for student, teacher in PAIRS:
            cells, advice = [], ""
            for shard in ("ddp", "fsdp2", "zero3"):
                settings = {
                    "teacher": str(folder / teacher), "student": str(folder / student), "loss": options.loss,
                    "data": {"train": str(folder / "rows.jsonl"), "max_length": options.length},
                    "train": {"max_steps": 100, "batch_size": 4 * options.gpus, "micro_tokens": 4 * options.length},
                    "hardware": {"device": "cuda", "dtype": "bf16", "gpus": options.gpus, "shard": shard},
                }  # fmt: skip
                made = plan_distill(DistillConfig.model_validate(settings), options.memory * 2**30)
                cells.append(f"{made.cost['gpu_bytes'] / 2**30:.0f}")
                if shard == "fsdp2":
                    advice = made.facts.get("to make it fit", "fits")
            print(f"| {student} | {teacher} | {' | '.join(cells)} | {advice.replace('|', '/')} |", flush=True)


if __name__ == "__main__":
    main()
