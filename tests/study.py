"""A tiny teacher, student and rows, and settings that use them."""

from pathlib import Path
from typing import Any

import tiny
from kdcli.config.schema import (
    CompareConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    EvalSettings,
    GenerationConfig,
    HardwareConfig,
    TrainConfig,
)
from kdcli.events import Event

METRICS = ("rougeL", "perplexity", "kl_to_teacher", "distinct")


class Parts:
    """Model folders and rows in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.teacher = tiny.folder(root / "teacher", seed=1)
        self.student = tiny.folder(root / "student", seed=2, hidden_size=8)
        self.train = tiny.rows(root / "train.jsonl")
        self.test = tiny.rows(root / "test.jsonl", 10)

    def data(self) -> DataConfig:
        return DataConfig(train=str(self.train), eval=str(self.test))

    def common(self, **train: Any) -> dict[str, Any]:
        return {
            "teacher": str(self.teacher),
            "student": str(self.student),
            "data": self.data(),
            "train": TrainConfig(**{"max_steps": 8, "batch_size": 4, "save_every": 3, "lr": 5e-3, **train}),
            "hardware": HardwareConfig(device="cpu"),
            "evaluation": EvalSettings(
                metrics=METRICS, generation=GenerationConfig(max_new_tokens=6, seeds=(1, 2), temperature=0.7)
            ),
        }

    def run(self, name: str = "run", loss: str = "fkl", **train: Any) -> DistillConfig:
        return DistillConfig(**self.common(**train), loss=loss, output=str(self.root / name))

    def study(self, *losses: str, seeds: tuple[int, ...] = (0,), name: str = "study", **train: Any) -> CompareConfig:
        return CompareConfig(**self.common(**train), losses=losses, seeds=seeds, output=str(self.root / name))

    def evaluation(self, model: Path | str, **changes: Any) -> EvalConfig:
        common = self.common()
        fields = {name: common[name] for name in ("teacher", "hardware", "evaluation")}
        return EvalConfig(**{**fields, "model": str(model), "data": DataConfig(eval=str(self.test)), **changes})


class Heard:
    """A report that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def messages(self, kind: str) -> list[str]:
        return [event.message for event in self.events if event.kind == kind]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
