import pytest
import torch

from kdcli.config.schema import HardwareConfig
from kdcli.errors import MachineError, UsageError
from kdcli.models.devices import peak_memory, prepare, reset_peak_memory


def test_cpu_is_fp32_by_default_and_bf16_on_request():
    assert prepare(HardwareConfig(device="cpu")).autocast is None
    assert prepare(HardwareConfig(device="cpu", dtype="bf16")).compute == torch.bfloat16


def test_fp16_is_refused():
    with pytest.raises(UsageError, match="bf16"):
        prepare(HardwareConfig(device="cpu", dtype="fp16"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_a_missing_device_is_said():
    with pytest.raises(MachineError, match="no CUDA device") as caught:
        prepare(HardwareConfig(device="cuda"))
    assert caught.value.exit_code == 4


def test_peak_memory_is_measured_anew_after_a_reset():
    device = torch.device("cpu")
    block = torch.ones(2**25)
    del block
    reset_peak_memory(device)
    before = peak_memory(device)
    block = torch.ones(2**24)
    after = peak_memory(device)
    assert after - before > 0.5 * block.numel() * 4
