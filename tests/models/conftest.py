"""One good model folder for the tests of this directory."""

import pytest
import torch

import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
