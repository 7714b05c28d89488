"""Shows a followed run: as a live table, JSON lines, or not at all; Ctrl-C only looks away."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedfactory.cli.operating import say
from fedfactory.contracts.errors import RunFailedError, RunStoppedError, UsageError

if TYPE_CHECKING:
    from fedfactory.operator.client import OperatorClient
    from fedfactory.operator.following import Follower

EXIT_OF_STATUS: Final = {
    "completed": 0,
    "failed": RunFailedError.exit_code,
    "stopped": RunStoppedError.exit_code,
}


def followed_folder(asked: Path | None, run_id: str) -> Path:
    """Return where a run is followed into: the folder asked for, else runs/<run id>."""
    return (asked or Path("runs") / run_id).absolute()


def check_free(folder: Path) -> None:
    """Check that a new run can be followed into a folder. Raises UsageError."""
    from fedfactory.operator.run_folder import EVENTS, SUMMARY

    if (folder / EVENTS).exists() or (folder / SUMMARY).exists():
        raise UsageError(f"{folder} already holds a run: name another folder, or remove it")


def follow(client: OperatorClient, run_id: str, folder: Path, asked: argparse.Namespace) -> int:
    """Follow a run into `folder` until it has ended; return the exit code.

    With --json a line per event and at last the summary's; with -q nothing.
    """
    from fedfactory.operator.following import Follower

    follower = Follower(client, run_id, folder)
    try:
        if asked.json:
            _print_events(follower)
        elif asked.quiet:
            for event in follower.events():
                if event is None and follower.status == "suspended":
                    break
        else:
            _show(follower, client)
    except KeyboardInterrupt:
        say(
            f"\nfedfactory: the run {run_id} goes on: `fedfactory watch {run_id}` follows it again,"
        )
        say(f"`fedfactory stop {run_id}` stops it; what came so far is in {folder}")
        return 130
    finally:
        follower.close()
    if follower.summary is None:
        raise RunFailedError(_suspended(client, run_id))
    return EXIT_OF_STATUS[follower.summary["status"]]


def _print_events(follower: Follower) -> None:
    from fedfactory.rounds.log import encode_event

    number = 0
    for event in follower.events():
        if event is not None:
            print(encode_event(number, event), flush=True)
            number += 1
        elif follower.status == "suspended":
            return
    print(json.dumps({"summary": follower.summary}, allow_nan=False), flush=True)


def _show(follower: Follower, client: OperatorClient) -> None:
    from fedfactory.report.reporter import make_reporter

    where = f"{client.operator.consortium}, {client.address}"
    reporter = make_reporter(sys.stdout, sites_note=f"of {where}")
    troubled = False
    try:
        reporter.stage("waiting for the coordinator")
        for event in follower.events():
            if (follower.trouble is not None) != troubled:
                troubled = not troubled
                reporter.stage(
                    "the coordinator cannot be reached; trying again"
                    if troubled
                    else "the coordinator is there again"
                )
            if event is not None:
                reporter.event(event)
            elif follower.status == "suspended":
                return
            reporter.tick()
        assert follower.summary is not None
        reporter.finish(follower.summary, str(follower.folder))
    finally:
        reporter.close()


def _suspended(client: OperatorClient, run_id: str) -> str:
    row = next((row for row in client.runs() if row.run_id == run_id), None)
    reason = row.reason if row is not None and row.reason else "its process died again and again"
    return f"the run {run_id} is suspended: {reason}; `fedfactory resume {run_id}` lets it go on"
