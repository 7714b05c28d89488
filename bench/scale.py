"""`python -m bench.scale [COUNT ...]`: many light agents on one coordinator, digits-sized updates.

For each count: seconds a round, what the coordinator's processes used (memory at the end, CPU a
round), what the agents themselves took of the same processors, and the seconds from the doorbell to
the order in hand at the agents.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from fedfactory.identity.operators import load_operator
from fedfactory.operator.client import OperatorClient
from fedfactory.wire.enrolling import enrol_identity
from site_agents.catalogue import numbered_sites
from tests.federation.consortium import Consortium

PARTS = {
    "gateway": ("fedfactory.cli.main coordinator",),
    "SuperLink": ("flower-superlink",),
}
ROUNDS = 6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=[10, 50, 100, 200])
    for count in parser.parse_args().counts:
        with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
            _measure(Path(folder), count)


def _measure(folder: Path, count: int) -> None:
    consortium = Consortium(folder)
    try:
        consortium.found(f"max_sites={count}")
        agents = _start_agents(consortium, count)
        try:
            consortium.wait_for(300, lambda: _connected(consortium) >= count, "the agents")
            before = _used(consortium, agents.pid)
            began = time.monotonic()
            run_id = consortium.run(
                "task=digits", f"rounds={ROUNDS}", "evaluate=false", "federation=numbered",
                f"federation.count={count}",
            )  # fmt: skip
            consortium.wait_for(900, lambda: consortium.ended(run_id), "the end")
            used = {
                part: seconds - before[part]
                for part, seconds in _used(consortium, agents.pid).items()
            }
            _show(consortium, run_id, count, used, time.monotonic() - began)
        finally:
            assert agents.stdin is not None
            agents.stdin.close()
            agents.wait(30)
        _show_doorbells(folder / "agents.jsonl")
    finally:
        consortium.close()


def _start_agents(consortium: Consortium, count: int) -> subprocess.Popen[bytes]:
    """Invite and enrol `count` sites; start one process for all of them."""
    homes = []
    with OperatorClient(load_operator(consortium.lead)) as client:
        for site in numbered_sites(count):
            home = consortium.folder / "sites" / site
            home.mkdir(parents=True)
            invitation = client.invite("site", site, 3600.0)
            enrol_identity(home / "identity", invitation)
            (home / "gateway.txt").write_text(invitation.gateway)
            homes.append(str(home))
    with (consortium.folder / "agents.jsonl").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.light_agents", *homes],
            stdin=subprocess.PIPE,
            stdout=output,
        )


def _connected(consortium: Consortium) -> int:
    with OperatorClient(load_operator(consortium.lead)) as client:
        return sum(member.connected for member in client.members().members)


def _used(consortium: Consortium, agents: int) -> dict[str, float]:
    """Return the CPU seconds so far of each part that lives, and of the agents."""
    used = {}
    for part, words in PARTS.items():
        found = consortium.find(*words)
        used[part] = sum(sum(process.cpu_times()[:2]) for process in found)
    used["agents"] = sum(psutil.Process(agents).cpu_times()[:2])
    return used


def _show(
    consortium: Consortium, run_id: str, count: int, used: dict[str, float], seconds: float
) -> None:
    rounds = [entry["seconds"] for entry in consortium.summary(run_id)["rounds"]]
    print(f"{count} agents: {statistics.median(rounds):.2f} s/round, {seconds:.1f} s in all")
    for part, words in PARTS.items():
        (process, *_) = consortium.find(*words)
        rss_mb = process.memory_info().rss / 1e6
        cpu_ms = used[part] / ROUNDS / count * 1e3
        threads = process.num_threads()
        print(f"  {part:<10} {rss_mb:5.0f} MB, {threads} threads, {cpu_ms:.1f} ms CPU/agent/round")
    print(
        f"  the agents themselves: {used['agents'] / ROUNDS / count * 1e3:.1f} ms CPU/agent/round"
    )


def _show_doorbells(lines: Path) -> None:
    found = [json.loads(line)["doorbell_s"] for line in lines.read_text().splitlines()]
    median, late = statistics.median(found), statistics.quantiles(found, n=20)[-1]
    print(f"  doorbell to order: median {1e3 * median:.0f} ms, p95 {1e3 * late:.0f} ms")


if __name__ == "__main__":
    main()
