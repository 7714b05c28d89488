"""Shows a followed run: as a live table, JSON lines, or not at all; Ctrl-C only looks away."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedfactory.cli.forms import say
from fedfactory.contracts.errors import (
    FedfactoryError,
    RunFailedError,
    RunStoppedError,
    UsageError,
)

if TYPE_CHECKING:
    from fedfactory.operator.client import OperatorClient
    from fedfactory.operator.following import Follower
    from fedfactory.report.reporter import Form
    from fedfactory.wire.operations import RunStatus

ASK_AGAIN_S: Final = 5.0  # who a run that has not begun waits for
EXIT_OF_STATUS: Final = {
    "completed": 0,
    "failed": RunFailedError.exit_code,
    "stopped": RunStoppedError.exit_code,
}


def form_of(asked: argparse.Namespace) -> Form:
    """Return the form in which a run is to be shown."""
    if asked.json:
        return "json"
    return "quiet" if asked.quiet else "words"


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
        _show(follower, client, form_of(asked))
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


def _show(follower: Follower, client: OperatorClient, form: Form) -> None:
    """Show the run until it has ended, or is suspended."""
    from fedfactory.report.reporter import make_reporter

    where = f"{client.operator.consortium}, {client.address}"
    reporter = make_reporter(sys.stdout, form=form, sites_note=f"of {where}")
    troubled, waiting = False, _Waiting(client, follower.run_id)
    waiting.over = form != "words"
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
                waiting.over = True
                reporter.event(event)
            elif follower.status == "suspended":
                return
            elif not troubled and (stage := waiting.stage(follower.status, time.monotonic())):
                reporter.stage(stage)
            reporter.tick()
        assert follower.summary is not None
        reporter.finish(follower.summary, str(follower.folder))
    finally:
        reporter.close()


class _Waiting:
    """What a run without an event waits for: its turn, then its sites; `over` once it has begun."""

    def __init__(self, client: OperatorClient, run_id: str) -> None:
        self.over = False
        self._client = client
        self._run_id = run_id
        self._said = ""
        self._ask_at = 0.0

    def stage(self, status: RunStatus | None, now: float) -> str | None:
        """Return what to say; None where that has not changed. `now` is monotonic seconds."""
        if self.over or status not in ("queued", "running") or now < self._ask_at:
            return None
        self._ask_at = now + ASK_AGAIN_S
        found = "waiting for its turn" if status == "queued" else self._sites()
        if found in (None, self._said):
            return None
        self._said = found
        return found

    def _sites(self) -> str | None:
        from fedfactory.report.text import names

        try:
            rows = [row for row in self._client.runs() if row.run_id == self._run_id]
            here = {m.name for m in self._client.members().members if m.connected}
        except FedfactoryError:  # the watch tells of it, too
            return None
        away = [site for row in rows for site in row.sites if site not in here]
        return f"waiting for {names(away)} to connect" if away else "the run is starting"


def _suspended(client: OperatorClient, run_id: str) -> str:
    row = next((row for row in client.runs() if row.run_id == run_id), None)
    reason = row.reason if row is not None and row.reason else "its process died again and again"
    resume = f"`fedfactory resume {run_id}`"
    rest = "" if resume in reason else f"; {resume} lets it go on"
    return f"the run {run_id} is suspended: {reason}{rest}"
