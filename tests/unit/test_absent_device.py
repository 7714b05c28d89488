"""A device that agent.yaml names and this machine has not: said at the start, and work refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from site_agents.executors.devices import absent_devices
from site_agents.executors.executor import NeverBegunError
from site_agents.executors.local import LocalExecutor
from tests.patience import until

ABSENT = "cuda:99"


def test_the_cpu_is_here_and_that_gpu_is_not() -> None:
    assert absent_devices(("cpu", ABSENT)) == (ABSENT,)


def test_it_is_logged_at_the_start_and_refused_before_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    executor = LocalExecutor(
        site="cesga", sources=dict, threads=1, devices=[ABSENT], log=tmp_path / "worker.log"
    )
    try:
        executor.start()
        until(lambda: f"torch sees no {ABSENT} here" in caplog.text)
        with pytest.raises(NeverBegunError, match=f"torch sees no {ABSENT} here"):
            executor.check_form("scans", "digits", {"model": "mlp"})
    finally:
        executor.close()
