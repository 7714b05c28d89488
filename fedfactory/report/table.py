"""The results of a run as tables: rounds, sites, the models' accuracies, where things lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfactory.report.terminal import shown
from fedfactory.report.text import (
    measured,
    number,
    percent,
    rounds_of,
    size,
    spans,
    took_part,
    why_missing,
)
from fedfactory.rounds.parts import NOT_MISSED

MAX_ROUNDS: Final = 30
EDGE: Final = 10
MAX_INTERRUPTIONS: Final = 3
WIDTH: Final = 100


def print_results(summary: Mapping[str, Any], folder: str, stream: IO[str]) -> None:
    """Print the results of a finished run (the form of summary.json)."""
    console = Console(file=stream, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    rounds = summary["rounds"]
    console.print()
    console.print(_rounds(rounds, folder))
    for line in _absences(rounds):
        console.print(Text(line))
    console.print()
    console.print(_sites(summary))
    console.print()
    for label, value in _facts(summary, folder):
        console.print(Text(f"{label:<16} {value}"), soft_wrap=True)


def _rounds(rounds: Sequence[Mapping[str, Any]], folder: str) -> Table:
    table = Table(box=None, pad_edge=False)
    _add_numbers(table, "round", "loss", "accuracy", "seconds")
    table.add_column("took part", overflow="fold")
    cut = len(rounds) > MAX_ROUNDS
    for found in rounds[:EDGE] if cut else rounds:
        _add_round(table, found)
    if cut:
        rest = Text(shown(f"the rest is in {folder}/metrics.jsonl"))
        table.add_row("…", "", "", "", rest)
        for found in rounds[-EDGE:]:
            _add_round(table, found)
    return table


def _add_round(table: Table, found: Mapping[str, Any]) -> None:
    table.add_row(
        str(found["round"]),
        number(found["metrics"]["loss"], 4),
        percent(found["metrics"]["accuracy"]),
        number(found["seconds"], 2),
        Text(took_part(found)),
    )


def _absences(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who gave nothing, in which rounds and why: each reason once, however many rounds."""
    found: dict[tuple[str, str], list[int]] = {}
    for entry in rounds:
        for absence in why_missing(entry):
            found.setdefault(absence, []).append(entry["round"])
    return [
        f"{shown(site)}, round {spans(numbers)}: {reason}"
        for (site, reason), numbers in sorted(found.items())
    ]


def _sites(summary: Mapping[str, Any]) -> Table:
    """One line per site: how often it took part, its bytes, its guarantee, its model alone."""
    baselines = summary["baselines"] or {"metric": "", "local_only": {}}
    alone = baselines["local_only"]
    private = summary["privacy"]["sites"]
    table = Table(box=None, pad_edge=False)
    table.add_column("site", overflow="fold")
    _add_numbers(table, "rounds", "to the site", "back", *(["epsilon", "delta"] if private else []))
    _add_numbers(table, *([f"{baselines['metric']} alone"] if alone else []))
    for site in summary["sites"]:
        count = sum(
            entry["sites"].get(site, {}).get("status") == "took_part" for entry in summary["rounds"]
        )
        moved = summary["bytes"].get(site)
        table.add_row(
            Text(shown(site)),
            f"{count} of {len(summary['rounds'])}",
            size(moved["down"]) if moved else "-",
            size(moved["up"]) if moved else "-",
            *(_guarantee(private.get(site)) if private else []),
            *([measured(baselines["metric"], alone.get(site))] if alone else []),
        )
    return table


def _guarantee(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return number(found["epsilon_run"], 3), f"{found['delta']:g}"


def _add_numbers(table: Table, *titles: str) -> None:
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)  # never squeezed


def _facts(summary: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    facts = [("status", _status(summary))]
    if never := summary["never_took_part"]:
        facts.append(("never took part", ", ".join(shown(site) for site in never)))
    if _never_evaluated(summary["rounds"]):
        facts.append(("evaluation", "no site evaluated the model in any round; see above why"))
    facts += _interruptions(summary["interruptions"])
    if best := summary["best"]:
        kept = ", the model kept" if best["kept"] else ""
        value = measured(best["metric"], best["value"])
        facts.append(("best", f"round {best['round']} ({best['metric']} {value}){kept}"))
    if summary["final"]["accuracy"] is not None:
        facts.append(("shared model", f"accuracy {percent(summary['final']['accuracy'])}"))
    if baselines := summary["baselines"]:
        metric = baselines["metric"]
        for label, key in (("on all tests", "shared"), ("pooled data", "pooled")):
            facts.append((label, f"{metric} {measured(metric, baselines[key])}"))
    facts.append(("privacy", summary["privacy"]["guarantee"]))
    for site, holds in summary["privacy"]["sites"].items():
        if holds is not None and holds.get("unprotected_updates"):
            facts.append((shown(site), shown(holds["guarantee"])))
    if summary["model"]["file"]:
        facts.append(("model", shown(f"{folder}/{summary['model']['file']}")))
    facts.append(("run folder", shown(folder)))
    return facts


def _never_evaluated(rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether sites were to evaluate, and none did in any round."""
    statuses = {part["status"] for entry in rounds for part in entry["evaluations"].values()}
    return not statuses <= NOT_MISSED and "took_part" not in statuses


def _interruptions(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    shown_ones = [
        ("interrupted", f"round {entry['round']}: {shown(entry['told'])}")
        for entry in found[:MAX_INTERRUPTIONS]
    ]
    rest = len(found) - len(shown_ones)
    return [*shown_ones, *([("", f"and {rest} times more: see summary.json")] if rest else [])]


def _status(summary: Mapping[str, Any]) -> str:
    if summary["status"] == "completed":
        done = f"completed, {rounds_of(len(summary['rounds']))} in {summary['seconds']:.1f} s"
        early = summary["reason"].startswith("stopped early")
        return f"{done}: {shown(summary['reason'])}" if early else done
    return f"{summary['status']}: {shown(summary['reason'])}"
