"""One thread per worker, no network, no leftovers of the user's environment."""

import gc
import importlib
import os

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
for name in [name for name in os.environ if name.startswith("KD_")]:
    del os.environ[name]

importlib.import_module("jaxtyping").jaxtyped = importlib.import_module("checked").checked
torch = importlib.import_module("torch")
torch.set_num_threads(1)
# The first backward pass decides whether autograd works in forks: where only the CPU is known as a device, as now. An
# export to ONNX, with which some process may begin, makes others known.
torch.ones(1, requires_grad=True).sum().backward()

# Copying a process that holds all libraries of the tests for every small file costs a fifth of their time. What is
# guarded is so done in place, but in the tests of the guard, in those of spoilt files, and in processes of their own.
importlib.import_module("kdcli.storage.forked").CHILDREN = False

gc.disable()  # while the tests are collected, nothing that is made is garbage


def pytest_collection_finish() -> None:
    """Leave the modules and tests, a million objects that stay, out of every later collection of garbage."""
    gc.freeze()
    gc.enable()
