"""`python -m bench.run [digits startup echo memory idle | all] [--quick]`: ours beside Flower's."""

from __future__ import annotations

import argparse
import statistics

from bench import ours, stock_flower
from bench.figures import Figures

# Seconds a round of NVIDIA FLARE 2.9.0 (simulator), measured earlier on this kind of machine.
NVFLARE = {"digits train": 2.6, "echo 100 MB": 5.2, "echo 400 MB": 9.7}


def _beside(
    name: str,
    mine: Figures,
    task: str,
    parameters: dict[str, object],
    *,
    evaluate: bool,
    quick: bool,
) -> None:
    """Print ours, then each peer and how many times ours its round takes."""
    _show(name, "ours", mine)
    rounds = 2 if quick else 3
    stock = stock_flower.run(task, parameters, rounds=rounds, evaluate=evaluate)
    _show(name, "stock deployment", stock, mine)
    if stock_flower.has_simulation():
        rounds = 3 if quick else 6
        simulated = stock_flower.run(
            task, parameters, rounds=rounds, evaluate=evaluate, simulation=True
        )
        _show(name, "Flower simulation", simulated, mine)
    else:
        print(f"{name:<22} Flower simulation: not installed (python -m bench.setup)", flush=True)
    if name in NVFLARE:
        ratio = NVFLARE[name] / mine.round_s
        print(f"{name:<22} {'NVFLARE, earlier':<18} {NVFLARE[name]:6.2f} s/round", end=" ")
        print(f"{'':<36} x {ratio:5.2f}", flush=True)


def _show(name: str, who: str, found: Figures, mine: Figures | None = None) -> None:
    spread = f"({min(found.rounds_s):.2f}-{max(found.rounds_s):.2f})"
    ratio = f"x {found.round_s / mine.round_s:5.2f}" if mine else ""
    print(
        f"{name:<22} {who:<18} {found.round_s:6.2f} s/round {spread:<15}"
        f" round 1 after {found.first_s:5.1f} s {ratio}",
        flush=True,
    )
    if name.startswith("echo"):
        peaks = ", ".join(f"{part} {mb:.0f}" for part, mb in found.peak_mb.items())
        print(f"{'':<22} {'':<18} peak MB: {peaks}", flush=True)


def digits(*, quick: bool) -> None:
    rounds = 4 if quick else 16
    for evaluate, name in ((False, "digits train"), (True, "digits train+evaluate")):
        words = (f"rounds={rounds}", f"evaluate={str(evaluate).lower()}")
        mine = ours.run("partition=iid", *words)
        _beside(name, mine, "digits", {"model": "mlp"}, evaluate=evaluate, quick=quick)


def startup(*, quick: bool) -> None:
    found = [ours.run("partition=iid", "rounds=1").first_s for _ in range(1 if quick else 3)]
    spread = f"({min(found):.1f}-{max(found):.1f})"
    print(f"command to end of round 1: {statistics.median(found):.1f} s {spread}", flush=True)


def echo(*, quick: bool) -> None:
    for megabytes in (10,) if quick else (100, 400):
        words = (f"task.megabytes={megabytes}", "rounds=4" if quick else "rounds=6")
        mine = ours.run("task=echo", "evaluate=false", *words)
        parameters: dict[str, object] = {"megabytes": megabytes}
        _beside(f"echo {megabytes} MB", mine, "echo", parameters, evaluate=False, quick=quick)


def memory(*, quick: bool) -> None:
    megabytes = 10 if quick else 100
    for count in (3, 6) if quick else (3, 6, 12):
        words = ("federation=numbered", f"federation.count={count}", f"task.megabytes={megabytes}")
        found = ours.run("task=echo", "evaluate=false", "rounds=3", *words)
        peaks = ", ".join(f"{part} {mb:.0f}" for part, mb in found.peak_mb.items())
        print(f"echo {megabytes} MB, {count:>2} sites: peak MB: {peaks}", flush=True)


def idle(*, quick: bool) -> None:
    share = 100 * ours.idle_agent_share(5 if quick else 20)
    print(f"idle agent: {share:.2f} % of a core", flush=True)


WORKLOADS = {
    "digits": digits,
    "startup": startup,
    "echo": echo,
    "memory": memory,
    "idle": idle,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("workloads", nargs="*", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: a trial")
    options = parser.parse_args()
    chosen = WORKLOADS if "all" in options.workloads else options.workloads
    for name in chosen:
        WORKLOADS[name](quick=options.quick)


if __name__ == "__main__":
    main()
