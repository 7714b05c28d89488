"""The GPUs that the drivers show and those that torch sees, held against what the site asks for."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from fedfactory.contracts.errors import EnvironmentFailedError
from site_agents.doctor.finding import Finding, fail, ok, warn
from site_agents.executors.devices import torch_gpus

AREA = "gpu"
GIB = 2**30
_DRIVER_TODO = "look at nvidia-smi or amd-smi, or ask the system's administrator"


def examine_gpus(asked: Sequence[str], threads: int) -> Iterator[Finding]:
    """Look at drivers and torch; `asked` is worker.devices, `threads` worker.threads."""
    shown = [*nvidia_gpus(), *amd_gpus()]
    yield from shown
    try:
        seen = torch_gpus()
    except EnvironmentFailedError as error:
        last = (error.diagnostic or "").strip().splitlines()[-1:]
        yield fail(
            "torch", f"{error}: {''.join(last)}", "install fedfactory anew in this environment"
        )
        return
    yield from judge_devices(asked, shown, seen, threads, os.cpu_count() or 1)


def judge_devices(
    asked: Sequence[str], shown: Sequence[Finding], seen: Sequence[str], threads: int, cores: int
) -> Iterator[Finding]:
    """Hold the devices asked for against the GPUs the drivers show and torch sees. Pure."""
    missing = [
        device
        for device in asked
        if device.startswith("cuda:") and int(device.removeprefix("cuda:")) >= len(seen)
    ]
    if missing:
        yield fail(
            AREA,
            f"worker.devices names {', '.join(missing)}, and torch sees {len(seen)} GPUs",
            "name devices that are there, or look at the driver and CUDA_VISIBLE_DEVICES",
        )
    elif seen and tuple(asked) != ("cpu",):
        used = ", ".join(f"cuda:{index} {name}" for index, name in enumerate(seen))
        yield ok("torch", f"sees {used}; one order at a time on each that is used")
    else:
        where = f"work runs on the CPU, {threads} of {cores} cores"
        if tuple(asked) == ("cpu",):
            yield ok(AREA, f"worker.devices asks for the CPU: {where}")
        elif shown:
            yield fail(
                AREA,
                f"the driver shows GPUs and torch sees none: {where}",
                "install the torch wheel for this driver (https://pytorch.org/get-started), or look"
                " at CUDA_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES",
            )
        else:
            yield warn(
                AREA,
                f"no GPU here: {where}",
                "fine for small models; say so by worker.devices: [cpu], and raise worker.threads",
            )


def nvidia_gpus() -> list[Finding]:
    """Ask NVIDIA's library, which comes with the driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        return [
            ok(AREA, _nvidia_line(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index), driver))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError as error:
        return [fail(AREA, f"NVIDIA's driver does not answer: {error}", _DRIVER_TODO)]
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _nvidia_line(nvml: Any, handle: Any, driver: str) -> str:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    line = (
        f"{nvml.nvmlDeviceGetName(handle)}, {memory.total / GIB:.0f} GiB"
        f" ({memory.free / GIB:.0f} free), driver {driver}"
    )
    with contextlib.suppress(nvml.NVMLError):  # most models know no MIG
        if nvml.nvmlDeviceGetMigMode(handle)[0]:
            line += ", in MIG mode"
    return line


def amd_gpus() -> list[Finding]:
    """Ask AMD's library, which comes with ROCm and not from PyPI."""
    try:
        amd = importlib.import_module("amdsmi")
        amd.amdsmi_init()
    except Exception:  # noqa: BLE001  absent, or without a driver: it raises several kinds
        return []
    try:
        handles = amd.amdsmi_get_processor_handles()
        return [ok(AREA, _amd_line(amd, handle)) for handle in handles]
    except amd.AmdSmiException as error:
        return [fail(AREA, f"AMD's driver does not answer: {error}", _DRIVER_TODO)]
    finally:
        amd.amdsmi_shut_down()


def _amd_line(amd: Any, handle: Any) -> str:
    name = amd.amdsmi_get_gpu_asic_info(handle)["market_name"]
    memory = amd.amdsmi_get_gpu_memory_total(handle, amd.AmdSmiMemoryType.VRAM)
    driver = amd.amdsmi_get_gpu_driver_info(handle)["driver_version"]
    return f"{name}, {memory / GIB:.0f} GiB, driver {driver}"
