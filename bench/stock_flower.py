"""Stock Flower on this machine, both ways it comes: its deployment and its simulation.

Deployment: `flower-superlink`, three `flower-supernode`, `flwr run`; no TLS, state in memory.
Simulation: `flower-superlink --simulation`, `flwr run`; sites are calls of Ray actors. Ray lies
in a venv of the bench's own (`python -m bench.setup`).
"""

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

from bench.figures import Figures, note_peaks
from bench.setup import VENV

APP = Path(__file__).parent / "stock_app"
DEPLOYMENT = Path(sys.executable).parent
SIMULATION = VENV / "bin"
SITES = 3
# The process that aggregates, by words of its command line.
PARTS = {"ServerApp": "flwr-serverapp", "simulation": "flwr-simulation"}
SAMPLE_S = 0.5
NODES_SETTLE_S = 4.0


def has_simulation() -> bool:
    """Whether `python -m bench.setup` was run."""
    return (SIMULATION / "flwr-simulation").exists()


def run(
    task: str,
    parameters: Mapping[str, object],
    *,
    rounds: int,
    evaluate: bool,
    simulation: bool = False,
    timeout_s: float = 400.0,
) -> Figures:
    """Run one federation to its end; the clock starts at `flwr run`, when all else is up."""
    with tempfile.TemporaryDirectory(prefix="stock-") as name:
        folder, port = Path(name), _free_port()
        scripts = SIMULATION if simulation else DEPLOYMENT
        children: list[subprocess.Popen[bytes]] = []

        def start(program: str, *words: object) -> subprocess.Popen[bytes]:
            children.append(_start(scripts, folder, program, *words))
            return children[-1]

        try:
            runtime = ("--simulation",) if simulation else ()
            start("flower-superlink", "--insecure", "--port", port, *runtime)
            _wait_for_port(port)
            for number in range(0 if simulation else SITES):
                node = ("--superlink", f"127.0.0.1:{port}", "--port", _free_port())
                config = ("--node-config", f"partition-id={number}")
                start("flower-supernode", "--insecure", *node, *config)
            time.sleep(NODES_SETTLE_S)
            (folder / "config.toml").write_text(
                f'[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
            )
            settings = {
                "task": task,
                "parameters": json.dumps(dict(parameters)),
                "rounds": rounds,
                "evaluate": evaluate,
                "times": str(folder / "times"),
            }
            words = ["--run-config", " ".join(f"{k}={_toml(v)}" for k, v in settings.items())]
            if simulation:
                # One core a call, so that two sites work side by side on two.
                resources = f"num-supernodes={SITES} client-resources-num-cpus=1"
                words += ["--federation-config", resources]
            began = time.time()
            code = start("flwr", "run", APP, "bench", *words).wait()
            assert code == 0, _log(folder)
            return _follow(children[0].pid, folder, rounds, began, timeout_s)
        finally:
            _stop(children)


def _follow(pid: int, folder: Path, rounds: int, began: float, timeout_s: float) -> Figures:
    peak: dict[str, float] = {}
    times = folder / "times"
    while not times.exists() or len(times.read_text().split()) < rounds:
        assert time.time() - began < timeout_s, _log(folder)
        note_peaks(pid, PARTS, peak)
        time.sleep(SAMPLE_S)
    ends = [float(x) for x in times.read_text().split()]
    gaps = [b - a for a, b in pairwise(ends)]
    return Figures(first_s=ends[0] - began, rounds_s=gaps, peak_mb=peak)


def _log(folder: Path) -> str:
    return (folder / "log").read_text()[-3000:]


def _start(scripts: Path, folder: Path, program: str, *words: object) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [str(scripts / program), *map(str, words)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    for child in reversed(children):
        if child.poll() is not None:
            continue
        for process in [*psutil.Process(child.pid).children(recursive=True), child]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        child.wait()


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
