"""The results of a run as a table: rounds, baselines, where things lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any, Final

from rich.console import Console
from rich.table import Table

from fedfactory.report.text import number, percent, size

MAX_ROUNDS: Final = 30
EDGE: Final = 10
WIDTH: Final = 100


def print_results(summary: Mapping[str, Any], folder: str, stream: IO[str]) -> None:
    """Print the results of a finished run."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, width=WIDTH)
    console.print()
    console.print(_rounds(summary["rounds"], folder))
    console.print()
    for label, value in _facts(summary, folder):
        console.print(f"{label:<22} {value}", soft_wrap=True, markup=False)


def _rounds(rounds: list[Mapping[str, Any]], folder: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("round", "loss", "accuracy", "seconds"):
        table.add_column(title, justify="right")
    table.add_column("took part", overflow="fold")
    shown: list[Mapping[str, Any] | None] = list(rounds)
    if len(rounds) > MAX_ROUNDS:
        shown = [*rounds[:EDGE], None, *rounds[-EDGE:]]
    for found in shown:
        if found is None:
            table.add_row("…", "", "", "", f"the rest is in {folder}/metrics.jsonl")
            continue
        metrics = found["metrics"]
        table.add_row(
            str(found["round"]),
            number(metrics["loss"], 4),
            percent(metrics["accuracy"]),
            number(found["seconds"], 2),
            _participants(found["sites"]),
        )
    return table


def _participants(sites: Mapping[str, Mapping[str, Any]]) -> str:
    took = [name for name, site in sites.items() if site["status"] == "took_part"]
    names = ", ".join(took) if len(took) <= 4 else f"{len(took)} of {len(sites)}"
    missing = [
        f"{name}: {site['reason'] or site['status']}"
        for name, site in sites.items()
        if site["status"] != "took_part"
    ]
    return "; without ".join(filter(None, [names or "nobody", "; ".join(missing)]))


def _facts(summary: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    facts = [("status", _status(summary))]
    if summary["never_took_part"]:
        facts.append(("never took part", ", ".join(summary["never_took_part"])))
    if summary["final"]["accuracy"] is not None:
        facts.append(("shared model", f"accuracy {percent(summary['final']['accuracy'])}"))
    if baselines := summary["baselines"]:
        facts += [
            (f"{site} alone", f"accuracy {percent(accuracy)}")
            for site, accuracy in baselines["local_only"].items()
        ]
        facts.append(("pooled data", f"accuracy {percent(baselines['pooled'])}"))
    down = sum(counts["down"] for counts in summary["bytes"].values())
    up = sum(counts["up"] for counts in summary["bytes"].values())
    facts.append(("transferred", f"{size(down)} to the sites, {size(up)} back"))
    if summary["model"]["file"]:
        facts.append(("model", f"{folder}/{summary['model']['file']}"))
    facts.append(("run folder", folder))
    return facts


def _status(summary: Mapping[str, Any]) -> str:
    if summary["status"] == "completed":
        return f"completed in {summary['seconds']:.1f} s"
    return f"{summary['status']}: {summary['reason']}"
