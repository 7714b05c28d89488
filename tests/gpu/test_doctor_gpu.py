"""The doctor on a machine with a GPU: driver and torch agree."""

from __future__ import annotations

import pytest
import torch

from site_agents.doctor.gpus import examine_gpus, nvidia_gpus
from site_agents.executors.devices import find_devices

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_each_gpu_is_shown_and_used() -> None:
    count = torch.cuda.device_count()
    found = list(examine_gpus(["auto"], 1))
    assert {one.level for one in found} == {"ok"}
    assert found[-1].text.startswith(f"sees cuda:0 {torch.cuda.get_device_name(0)}")
    assert find_devices(["auto"]) == tuple(f"cuda:{index}" for index in range(count))


@pytest.mark.skipif(torch.version.hip is not None, reason="needs NVIDIA's driver")
def test_nvidias_library_names_model_memory_and_driver() -> None:
    first = nvidia_gpus()[0]
    assert torch.cuda.get_device_name(0) in first.text
    assert "GiB" in first.text
    assert "driver" in first.text
