"""`python -m bench.egress [--quick]`: the egress guard's throughput beside a plain loop's.

One core, an update of 400 MB in 40 tensors of float32, read from the page cache. The plain loop is
what one would write without a guard of one's own: the safetensors library, torch.isfinite and a
norm per tensor, hashlib over the file. Then the guard's parts alone, which say what bounds it.
Seconds are of processor time (nothing here waits for a disk), so that other work counts for less.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from fedfactory.contracts.model import BlobRef, ModelSpec, TensorSpec
from fedfactory.wire.arrays import ArrayWriter
from site_agents.egress import Cleared, check_update

TENSORS = 40
PIECE = 256 * 1024


def _update(path: Path, megabytes: int) -> tuple[ModelSpec, BlobRef]:
    elements = megabytes * 1_000_000 // 4 // TENSORS
    tensors = (TensorSpec(name=f"t{n:02d}", shape=(elements,), dtype="F32") for n in range(TENSORS))
    spec = ModelSpec(tensors=tuple(tensors))
    writer = ArrayWriter(path, spec)
    rng = np.random.default_rng(1)
    for _ in range(TENSORS):
        writer.write(rng.standard_normal(elements, dtype=np.float32))
    return spec, writer.commit()


def _plain(path: Path) -> float:
    """Return the norm; as the guard, refuse what is not finite, and take the digest."""
    squares = 0.0
    for tensor in load_file(path).values():
        assert bool(torch.isfinite(tensor).all())
        squares += float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256").hexdigest()
    return squares**0.5


def _pieces(path: Path, each: Callable[[memoryview], object]) -> None:
    buffer = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            each(buffer[:count])


def _values(piece: memoryview, wide: np.ndarray) -> float:
    found = wide[: len(piece) // 4]
    found[:] = np.frombuffer(piece, "<f4", len(found))
    return float(np.einsum("i,i->", found, found))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.egress", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 MB, 3 times: a trial")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core, whatever a library starts
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        path = Path(folder) / "update.safetensors"
        spec, ref = _update(path, 40 if quick else 400)
        _compare(path, spec, ref, repeats=3 if quick else 9)


def _compare(path: Path, spec: ModelSpec, ref: BlobRef, *, repeats: int) -> None:
    wide = np.empty(PIECE // 4)
    digest = hashlib.sha256()
    norms: dict[str, float] = {}

    def guard() -> None:
        found = check_update(path, spec, ref, None)
        assert isinstance(found, Cleared)
        norms["guard"] = found.norm_l2

    def plain() -> None:
        norms["plain"] = _plain(path)

    workloads: dict[str, Callable[[], object]] = {
        "guard": guard,
        "plain loop": plain,
        "  reading alone": lambda: _pieces(path, lambda _: None),
        "  and the digest": lambda: _pieces(path, digest.update),
        "  and the norm": lambda: _pieces(path, lambda piece: _values(piece, wide)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for _ in range(repeats):  # side by side, so that other work on the machine falls on all alike
        for name, work in workloads.items():
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
    assert abs(norms["guard"] / norms["plain"] - 1) < 1e-9
    ours = statistics.median(seconds["guard"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(
            f"egress {ref.bytes / 1e6:.0f} MB  {name:<16} {median:6.3f} s"
            f" ({min(found):.3f}-{max(found):.3f})  {ref.bytes / median / 1e9:5.2f} GB/s"
            f"  x {median / ours:4.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
