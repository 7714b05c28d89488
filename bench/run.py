"""`python -m bench.run [digits] [echo] [memory] [idle]`: ours beside stock Flower, as ratios."""

from __future__ import annotations

import sys

from bench import ours, stock_flower
from bench.ours import Figures

DIGITS = ("partition=iid", "rounds=10")
ECHO = ("task=echo", "evaluate=false", "rounds=4")


def _line(name: str, mine: Figures, stock: Figures | None) -> None:
    spread = f"{min(mine.rounds_s):.2f}-{max(mine.rounds_s):.2f}"
    text = f"{name:<24} ours {mine.round_s:6.2f} s/round ({spread}), round 1 {mine.first_s:5.1f} s"
    if stock is not None:
        text += f" | stock {stock.round_s:6.2f} s/round, round 1 {stock.first_s:5.1f} s"
        text += f" | ratio {stock.round_s / mine.round_s:5.1f}"
    print(text, flush=True)


def digits() -> None:
    for evaluate, name in ((False, "digits train"), (True, "digits train+evaluate")):
        mine = ours.run(*DIGITS, f"evaluate={str(evaluate).lower()}")
        stock = stock_flower.run("digits", {"model": "mlp"}, rounds=3, evaluate=evaluate)
        _line(name, mine, stock)


def echo() -> None:
    for megabytes in (100, 400):
        mine = ours.run(*ECHO, f"task.megabytes={megabytes}")
        stock = stock_flower.run("echo", {"megabytes": megabytes}, rounds=3, evaluate=False)
        _line(f"echo {megabytes} MB", mine, stock)
        print("   peak MB: ours", {k: round(v) for k, v in mine.peak_mb.items()}, flush=True)
        print("            stock", {k: round(v) for k, v in stock.peak_mb.items()}, flush=True)


def memory() -> None:
    for count in (3, 6, 12):
        words = ("federation=numbered", f"federation.count={count}", "task.megabytes=100")
        found = ours.run("task=echo", "evaluate=false", "rounds=2", *words)
        print(f"echo 100 MB, {count:>2} sites: ServerApp {found.peak_mb['ServerApp']:.0f} MB,"
              f" agent {found.peak_mb['agent']:.0f} MB", flush=True)  # fmt: skip


def idle() -> None:
    print(f"idle agent: {100 * ours.idle_agent_share():.2f} % of a core", flush=True)


WORKLOADS = {"digits": digits, "echo": echo, "memory": memory, "idle": idle}

if __name__ == "__main__":
    for word in sys.argv[1:] or WORKLOADS:
        WORKLOADS[word]()
