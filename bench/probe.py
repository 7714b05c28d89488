"""Takes the figures of one clone: `python -P bench/probe.py local|sites|light ...`, by engine.py.

Run with the clone's own interpreter, in the clone, with the clone first on PYTHONPATH: all that is
imported here is the clone's, which may be older than this file. The last line on standard output is
a JSON object of figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

import fedfactory
from fedfactory.coordinator.running.journal import JOURNAL, read_events
from fedfactory.identity.operators import load_operator
from fedfactory.operator.client import OperatorClient
from fedfactory.wire.enrolling import enrol_identity
from site_agents.catalogue import numbered_sites
from tests.federation.consortium import Consortium
from tests.federation.homes import make_share

CLONE = Path(fedfactory.__file__).parents[1]
SITES = ("cesga", "cyfronet", "lumi")
DIGITS = (
    "task=digits", "partition=iid", "local_epochs=1", "evaluate=false", "rounds=100000",
    f"federation.sites=[{','.join(SITES)}]",
)  # fmt: skip
COORDINATOR = ("fedfactory.cli.main coordinator",)
# A run's own process, by words of its command line: of now, and of when Flower started it.
RUN_PROCESS = ("fedfactory.coordinator.running.process", "flwr-serverapp")
AGENT = ("site_agents.cli.main", "run")
LOOK_S = 0.02
CONNECT_S = 120.0
OPERATOR_CALL_S = 0.05  # the gateway takes so many calls of an operator's in the long run


# ---- fedfactory local ------------------------------------------------------------------------


def local(rounds: int, *, evaluate: bool) -> dict[str, Any]:
    """A federation as a user starts it: seconds to the end of round 1, seconds of each later one.

    `processes`: how many live between two rounds, `fedfactory local` among them.
    """
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        out = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "fedfactory.cli.main", "local", f"out={out}"),
            *("partition=iid", f"rounds={rounds}", f"evaluate={str(evaluate).lower()}"),
        ]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        counts: list[int] = []
        first = 0.0
        try:
            while process.poll() is None:
                if first:
                    counts.append(1 + len(psutil.Process(process.pid).children(recursive=True)))
                    time.sleep(0.2)
                elif _lines(out / "metrics.jsonl"):
                    first = time.monotonic() - began
                else:
                    time.sleep(LOOK_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        assert process.returncode == 0, f"fedfactory local ended with {process.returncode}"
        seconds = [r["seconds"] for r in json.loads((out / "summary.json").read_text())["rounds"]]
    return {
        "first_s": first,
        "rounds_s": seconds[1:],
        "processes": max(Counter(counts).items(), key=lambda found: found[1])[0] if counts else 0,
    }


# ---- three real sites ------------------------------------------------------------------------


def sites(rounds: int, kills: int) -> dict[str, Any]:
    """Three real agents: memory when idle, CPU a round, and from kill -9 to the next order."""
    with _consortium("max_rounds=100000") as consortium:
        for site in SITES:
            consortium.settle(site, lambda home, invited: make_share(home, invited, DIGITS))
        consortium.wait_for_sites()
        time.sleep(3)
        fresh = _memory(consortium)
        with consortium.kept():
            run_id = consortium.run(*DIGITS)
            folder = consortium.home / "runs" / run_id
            cpu = _cpu_of_rounds(consortium, folder / "metrics.jsonl", rounds)
            found = {
                part: [_seconds_to_order(consortium, folder / JOURNAL, words) for _ in range(kills)]
                for part, words in (("coordinator", COORDINATOR), ("run process", RUN_PROCESS))
            }
            consortium.fedfactory("stop", run_id)
            consortium.wait_for(120, lambda: consortium.ended(run_id), "the end")
        time.sleep(3)
        return {"idle_mb": fresh, "after_mb": _memory(consortium), "kill_s": found, **cpu}


def _memory(consortium: Consortium) -> dict[str, float]:
    """Return what an agent takes of memory, the median of all, in MB: resident, and its share."""
    agents = consortium.find(*AGENT)
    assert len(agents) == len(SITES), [p.cmdline() for p in agents]
    return {
        "rss": statistics.median(p.memory_info().rss / 1e6 for p in agents),
        "pss": statistics.median(p.memory_full_info().pss / 1e6 for p in agents),
    }


def _cpu_of_rounds(consortium: Consortium, metrics: Path, rounds: int) -> dict[str, float]:
    """Return ms of CPU an agent and round: of the coordinator's side, and of a real agent's own."""
    consortium.wait_for(120, lambda: _lines(metrics) >= 2, "the first rounds")
    agents = consortium.find(*AGENT)
    ours, theirs, begun = _coordinator_cpu(consortium), _cpu(agents), _lines(metrics)
    consortium.wait_for(300, lambda: _lines(metrics) >= begun + rounds, "the rounds")
    done = (_lines(metrics) - begun) * len(SITES)
    return {
        "coordinator_ms": 1e3 * (_coordinator_cpu(consortium) - ours) / done,
        "agent_ms": 1e3 * (_cpu(agents) - theirs) / done,
    }


def _seconds_to_order(consortium: Consortium, journal: Path, words: Sequence[str]) -> float:
    consortium.wait_for(60, lambda: _order_after(journal, time.time() - 1.0) > 0, "a round")
    (victim, *_) = (found for word in words for found in consortium.find(word))
    victim.kill()
    killed_at = time.time()
    time.sleep(0.1)
    consortium.wait_for(120, lambda: _order_after(journal, killed_at + 0.1) > 0, "an order")
    return _order_after(journal, killed_at + 0.1) - killed_at


def _order_after(journal: Path, moment: float) -> float:
    """Return when orders were first sent after `moment` (Unix seconds), 0 if none were."""
    events = (json.loads(line) for _, line in read_events(journal, 0)[-200:])
    sent = (event["at"] for event in events if event["event"] == "OrdersSent")
    return next((float(at) for at in sent if at > moment), 0.0)


# ---- many light sites ------------------------------------------------------------------------


def light(count: int, rounds: int, limit_s: float) -> dict[str, Any]:
    """Many light agents: seconds a round, CPU an agent and round, the first round not counted.

    After `limit_s` seconds the run is cut, once its first round is over: `cut` tells.
    """
    with _consortium(f"max_sites={count}") as consortium:
        agents = start_light_agents(consortium, count)
        try:
            wait_for_light_agents(consortium, agents, count)
            run_id = consortium.run(
                "task=digits", f"rounds={rounds}", "evaluate=false", "federation=numbered",
                f"federation.count={count}",
            )  # fmt: skip
            return _light_rounds(consortium, run_id, agents, count, limit_s)
        finally:
            end_light_agents(agents)


def start_light_agents(consortium: Consortium, count: int) -> subprocess.Popen[bytes]:
    """Invite and enrol `count` sites; start one process for all of them, which writes to a file."""
    homes = []
    with OperatorClient(load_operator(consortium.lead)) as client:
        for site in numbered_sites(count):
            home = consortium.folder / "light" / site
            home.mkdir(parents=True)
            invitation = client.invite("site", site, 3600.0)
            enrol_identity(home / "identity", invitation)
            (home / "gateway.txt").write_text(invitation.gateway)
            homes.append(str(home))
            time.sleep(OPERATOR_CALL_S)
    with (
        (consortium.folder / "agents.jsonl").open("wb") as output,
        (consortium.folder / "agents.log").open("wb") as errors,
    ):
        return subprocess.Popen(
            [sys.executable, "-m", "bench.light_agents", *homes],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            cwd=CLONE,
        )


def end_light_agents(agents: subprocess.Popen[bytes]) -> None:
    """End the process of the light agents."""
    assert agents.stdin is not None
    agents.stdin.close()
    try:
        agents.wait(30)
    except subprocess.TimeoutExpired:
        agents.kill()
        agents.wait()


def wait_for_light_agents(
    consortium: Consortium, agents: subprocess.Popen[bytes], count: int
) -> None:
    """Wait until so many sites have their doorbell open."""
    end = time.monotonic() + CONNECT_S
    with OperatorClient(load_operator(consortium.lead)) as client:
        while sum(member.connected for member in client.members().members) < count:
            log = consortium.folder / "agents.log"
            assert agents.poll() is None, log.read_text()
            assert time.monotonic() < end, f"not all sites came in time: {log.read_text()}"
            time.sleep(0.5)


def _light_rounds(
    consortium: Consortium,
    run_id: str,
    agents: subprocess.Popen[bytes],
    count: int,
    limit_s: float,
) -> dict[str, Any]:
    folder = consortium.home / "runs" / run_id
    metrics, end = folder / "metrics.jsonl", time.monotonic() + limit_s
    (daemon,) = consortium.find(*COORDINATOR)
    stand_ins = [psutil.Process(agents.pid)]
    # Rounds that are over, CPU of the coordinator, CPU of the agents.
    seen = [(0, _tree_cpu(daemon), _cpu(stand_ins))]
    while not consortium.ended(run_id) and (time.monotonic() < end or len(seen) == 1):
        assert time.monotonic() < end + 4 * limit_s, "not even a first round came"
        if (over := _lines(metrics)) > seen[-1][0]:
            with suppress(psutil.Error):  # the run's own process goes with the run
                seen.append((over, _tree_cpu(daemon), _cpu(stand_ins)))
        time.sleep(LOOK_S)
    found = [json.loads(line) for line in metrics.read_text().splitlines()]
    first, last = seen[len(seen) > 2], seen[-1]  # cut after one round, that one must do
    done = (last[0] - first[0]) * count
    events = (json.loads(line) for _, line in read_events(folder / JOURNAL, 0))
    refused = Counter(e["code"] for e in events if e["event"] == "ReplyRefused")
    return {
        "rounds_s": [entry["seconds"] for entry in found],
        "cut": not consortium.ended(run_id),
        "took_part": [_took_part(entry) for entry in found],
        "refused": dict(refused),
        "coordinator_ms": 1e3 * (last[1] - first[1]) / done,
        "stand_in_ms": 1e3 * (last[2] - first[2]) / done,
        "daemon_mb": daemon.memory_info().rss / 1e6,
        "daemon_threads": daemon.num_threads(),
        "doorbell_s": _doorbells(consortium.folder / "agents.jsonl"),
    }


def _took_part(entry: Mapping[str, Any]) -> int:
    return sum(part["status"] == "took_part" for part in entry["sites"].values())


def _doorbells(lines: Path) -> list[float]:
    """Return median and 95th percentile of the seconds from the doorbell to the order in hand."""
    found = [json.loads(line)["doorbell_s"] for line in lines.read_text().splitlines()]
    if len(found) < 2:
        return []
    return [statistics.median(found), statistics.quantiles(found, n=20)[-1]]


# ---- within ----------------------------------------------------------------------------------


@contextmanager
def _consortium(*settings: str) -> Iterator[Consortium]:
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        consortium = Consortium(Path(folder))
        try:
            consortium.found(*settings)
            yield consortium
        finally:
            consortium.close()


def _coordinator_cpu(consortium: Consortium) -> float:
    (daemon,) = consortium.find(*COORDINATOR)
    return _tree_cpu(daemon)


def _tree_cpu(daemon: psutil.Process) -> float:
    """Return the CPU seconds of the coordinator's side so far: the daemon, all that it started."""
    return _cpu([daemon, *daemon.children(recursive=True)])


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """Return the CPU seconds of processes so far, and of the children that they waited for."""
    return float(sum(sum(process.cpu_times()[:4]) for process in processes))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    works: Mapping[str, Callable[..., dict[str, Any]]] = {
        "local": local, "sites": sites, "light": light,
    }  # fmt: skip
    parser = argparse.ArgumentParser(prog="bench/probe.py", description=__doc__)
    parser.add_argument("work", choices=works)
    parser.add_argument("words", help="its arguments, as a JSON object")
    options = parser.parse_args()
    print(json.dumps(works[options.work](**json.loads(options.words))))


if __name__ == "__main__":
    main()
