"""Flower's stock deployment on this machine: SuperLink, three SuperNodes, `flwr run`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import psutil

from bench.ours import Figures

APP = Path(__file__).parent / "stock_app"
SCRIPTS = Path(sys.executable).parent


def run(
    task: str,
    parameters: Mapping[str, object],
    *,
    rounds: int,
    evaluate: bool,
    timeout_s: float = 400.0,
) -> Figures:
    """Run one federation to its end."""
    with tempfile.TemporaryDirectory(prefix="stock-bench-") as name:
        folder = Path(name)
        times = folder / "times"
        environment = _environment(folder)
        port = _free_port()
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\n'
            "insecure = true\n"
        )
        children = [_start(environment, folder, "flower-superlink", "--insecure", "--port", port)]
        try:
            _wait_for_port(port)
            for number in range(3):
                node = ("--insecure", "--superlink", f"127.0.0.1:{port}", "--port", _free_port())
                config = f"partition-id={number}"
                words = (*node, "--node-config", config)
                children.append(_start(environment, folder, "flower-supernode", *words))
            time.sleep(4)
            config = {
                "task": task,
                "parameters": json.dumps(dict(parameters)),
                "rounds": rounds,
                "evaluate": evaluate,
                "times": str(times),
            }
            text = " ".join(f"{k}={_toml(v)}" for k, v in config.items())
            began = time.time()
            _start(environment, folder, "flwr", "run", APP, "bench", "--run-config", text).wait()
            return _follow(children, times, rounds, began, timeout_s, folder)
        finally:
            _stop(children)


def _follow(  # noqa: PLR0917
    children: list[subprocess.Popen[bytes]],
    times: Path,
    rounds: int,
    began: float,
    timeout_s: float,
    folder: Path,
) -> Figures:
    peak = {"ServerApp": 0.0}
    while not times.exists() or len(times.read_text().split()) < rounds:
        assert time.time() - began < timeout_s, (folder / "log").read_text()[-3000:]
        for child in psutil.Process(children[0].pid).children(recursive=True):
            try:
                if "flwr-serverapp" in " ".join(child.cmdline()):
                    peak["ServerApp"] = max(peak["ServerApp"], child.memory_info().rss / 1e6)
            except psutil.Error:
                continue
        time.sleep(0.2)
    ends = [float(x) for x in times.read_text().split()]
    gaps = [b - a for a, b in pairwise(ends)]
    return Figures(ends[0] - began, gaps, peak)


def _start(environment: Mapping[str, str], folder: Path, *words: object) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [str(SCRIPTS / str(words[0])), *map(str, words[1:])],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    for child in reversed(children):
        for process in [*psutil.Process(child.pid).children(recursive=True), child]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        child.wait()


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
    }


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f"'{value}'"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("SuperLink did not start")
