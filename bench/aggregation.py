"""`python -m bench.aggregation [--quick]`: verifying and folding updates, with their norm taken.

One core, three sites' updates of 100 and 400 MB in 40 tensors of float32, read from the page cache.
'finite alone' is the pass that verified an update before its norm was taken in it; both read the
file once, the fold reads it again when its site's turn comes. 'base' is the base's norm,
taken beside, once for each model whatever the number of sites. Seconds are of processor time.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.egress import _update
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.updates import Payload, Update
from fedfactory.coordinator.aggregating.accumulator import Accumulator
from fedfactory.coordinator.aggregating.aggregation import verify_update
from fedfactory.wire.arrays import ArrayFile, first_non_finite, norm_l2
from strategies import make_strategy

SITES = ("cesga", "lumi", "vega")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.aggregation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 MB, 3 times: a trial")
    quick = parser.parse_args().quick
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    for megabytes in (40,) if quick else (100, 400):
        with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
            _measure(Path(folder), megabytes, repeats=3 if quick else 7)


def _from(site: str, ref: BlobRef) -> Update:
    work = WorkKey(coordinator="hub", run_id="r", round=1, kind="train", site=site, order_digest="")
    payload = Payload(form="delta", blob=ref)
    return Update(work=work, payload=payload, examples=100, metrics={}, seconds=1.0, privacy=None)


def _measure(folder: Path, megabytes: int, *, repeats: int) -> None:
    path = folder / "update.safetensors"
    spec, ref = _update(path, megabytes)
    updates = [_from(site, ref) for site in SITES]
    accumulator = Accumulator(make_strategy("fedavg", {"weighting": "examples"}))

    def finite() -> None:
        with ArrayFile(path) as file:
            assert first_non_finite(file) is None

    def base() -> None:
        with ArrayFile(path) as file:
            norm_l2(file)

    def aggregate(verify: Callable[[], object]) -> Callable[[], object]:
        def round_of_all() -> None:
            accumulator.begin(path)
            for update in updates:
                verify()
                accumulator.add(update, path, staleness=0)
            accumulator.finish(folder / "model")

        return round_of_all

    def verified() -> None:
        assert isinstance(verify_update(path, spec, math.inf), float)

    work: dict[str, Callable[[], object]] = {
        "one update, finite alone": finite,
        "one update, with its norm": verified,
        "base, its norm": base,
        "round of 3, finite alone": aggregate(finite),
        "round of 3, with norms": aggregate(verified),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, each in work.items():
            began = time.process_time()
            each()
            seconds[name].append(time.process_time() - began)
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(
            f"aggregation {megabytes} MB  {name:<26} {middle:6.3f} s"
            f" ({min(found):.3f}-{max(found):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
