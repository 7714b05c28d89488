"""`python -m bench.journal [--megabytes N] [--folder DIR]`: what being able to resume costs.

A round's journal entries and its checkpoint, as the runner writes them, beside the disk's own
sequential write of the same bytes; each alternates with the other, on the disk of `--folder`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.running.checkpoints import Checkpoints
from fedfactory.coordinator.running.journal import JOURNAL, Journal
from fedfactory.rounds.events import Event, RunStarted
from fedfactory.wire.arrays import ArrayWriter, spec_of
from tests.run_events import accepted, made, sent
from tests.run_plans import run_plan

DIGITS_ELEMENTS = 103_306
SITES = ("cesga", "cyfronet", "lumi")
PIECE = 1 << 16
TIMES = 30
LARGE_TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.journal", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400, help="of the large model")
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        _round(folder)
        _large(folder, options.megabytes * 250_000)


def _round(folder: Path) -> None:
    """A digits round: three answers and a model in one commit, new orders in another."""
    plan = run_plan(sites=SITES)
    journal, checkpoints = Journal.open(folder / JOURNAL), Checkpoints(folder)
    journal.append([RunStarted(at=0.0, plan=plan, connected=SITES)])
    values = np.ones(DIGITS_ELEMENTS, dtype=np.float32)
    commits, models = [], []
    for number in range(1, TIMES + 1):
        values += 1.0
        models.append(_seconds(partial(_checkpoint, checkpoints, values)))
        closing: list[Event] = [accepted(site, round=number) for site in SITES]
        closing.append(made(number))
        opening: list[Event] = [sent(*SITES, round=number + 1)]
        commits.append(_seconds(partial(_commit, journal, closing, opening)))
    journal.close()
    journal_ms, model_ms = 1e3 * statistics.median(commits), 1e3 * statistics.median(models)
    print(f"digits round: journal {journal_ms:.1f} ms, checkpoint {model_ms:.1f} ms", flush=True)


def _commit(journal: Journal, closing: list[Event], opening: list[Event]) -> None:
    journal.append(closing)
    journal.append(opening)


def _large(folder: Path, elements: int) -> None:
    values = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
    checkpoints = Checkpoints(folder)
    ratios = []
    for _ in range(LARGE_TIMES):
        raw_s = _seconds(partial(_raw, folder / "raw", values))
        ours_s = _seconds(partial(_checkpoint, checkpoints, values))
        ratios.append(ours_s / raw_s)
        megabytes = 4 * elements // 1_000_000
        print(f"{megabytes} MB: disk {raw_s:.2f} s, checkpoint {ours_s:.2f} s", flush=True)
    spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
    print(f"ratio {statistics.median(ratios):.2f} {spread}", flush=True)


def _checkpoint(checkpoints: Checkpoints, values: np.ndarray) -> BlobRef:
    """Write, hash and keep a model, durably; the one before it is dropped by the next round."""
    path = checkpoints.workplace / "model"
    writer = ArrayWriter(path, spec_of({"w": values}))
    for at in range(0, values.size, PIECE):
        writer.write(values[at : at + PIECE])
    ref = writer.commit()
    checkpoints.keep(path, ref)
    return ref


def _raw(path: Path, values: np.ndarray) -> None:
    rest = memoryview(values).cast("B")
    with path.open("wb", 0) as file:
        for at in range(0, len(rest), 4 * PIECE):
            file.write(rest[at : at + 4 * PIECE])
        os.fsync(file.fileno())
    path.unlink()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
