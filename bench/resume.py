"""`python -m bench.resume [--times N]`: from kill -9 of the coordinator's parts to the next order.

A real consortium of three sites trains digits; each part is killed while a round is under way, and
the journal tells when the next orders were sent. What ends is started again after 0.2 s at most, as
systemd would.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from fedfactory.coordinator.running.journal import JOURNAL, read_events
from tests.federation.consortium import Consortium
from tests.federation.homes import make_share

SITES = ("cesga", "cyfronet", "lumi")
RUN = (
    "task=digits", "partition=iid", "rounds=100000", "local_epochs=1", "evaluate=false",
    f"federation.sites=[{','.join(SITES)}]",
)  # fmt: skip
PARTS = {
    "ServerApp": ("flwr-serverapp",),
    "SuperLink": ("flower-superlink",),
    "SuperExec": ("flower-superexec",),
    "coordinator": ("fedfactory.cli.main coordinator",),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.resume", description=__doc__)
    parser.add_argument("--times", type=int, default=3, help="kills of each part")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        consortium = Consortium(Path(folder))
        try:
            consortium.found("max_rounds=100000")
            for site in SITES:
                consortium.settle(site, lambda home, told: make_share(home, told, RUN))
            consortium.wait_for_sites()
            with consortium.kept():
                run_id = consortium.run(*RUN)
                journal = consortium.home / "runs" / run_id / JOURNAL
                for part, words in PARTS.items():
                    found = [_seconds_to_order(consortium, journal, words) for _ in range(times)]
                    spread = f"({min(found):.1f}-{max(found):.1f})"
                    print(f"{part:<12} {statistics.median(found):5.1f} s {spread}", flush=True)
        finally:
            consortium.close()


def _seconds_to_order(consortium: Consortium, journal: Path, words: tuple[str, ...]) -> float:
    consortium.wait_for(60, lambda: _orders_since(journal, time.time() - 1.0) > 0, "a round")
    (victim,) = consortium.find(*words)[:1]
    victim.kill()
    killed_at = time.time()
    time.sleep(0.1)
    consortium.wait_for(120, lambda: _orders_since(journal, killed_at + 0.1) > 0, "an order")
    return _orders_since(journal, killed_at + 0.1) - killed_at


def _orders_since(journal: Path, moment: float) -> float:
    """Return when orders were first sent after `moment` (Unix seconds), 0 if none were."""
    events = (json.loads(line) for _, line in read_events(journal, 0)[-200:])
    sent = (event["at"] for event in events if event["event"] == "OrdersSent")
    return next((float(at) for at in sent if at > moment), 0.0)


if __name__ == "__main__":
    main()
