"""The Flower ServerApp: opens a run's journal and link, and hands over to the runner.

The app archive that Flower starts holds one import of `app`; everything is here and beside.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfactory.coordinator.aggregating.strategy_loading import load_aggregation
from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.flower_seam import APP_KEYS, Post
from fedfactory.coordinator.run_settings import CENTRAL, RunSettings
from fedfactory.coordinator.running.checkpoints import Checkpoints
from fedfactory.coordinator.running.journal import JOURNAL, Journal
from fedfactory.coordinator.running.life import Life
from fedfactory.coordinator.running.link import Link
from fedfactory.coordinator.running.measuring import Measuring
from fedfactory.coordinator.running.ordering import Orders
from fedfactory.coordinator.running.run_files import RunFiles
from fedfactory.coordinator.running.run_log import run_log
from fedfactory.coordinator.running.run_parts import Happenings, Mail, RunParts
from fedfactory.coordinator.running.runner import Runner
from fedfactory.coordinator.running.standing import Standing
from fedfactory.identity.signing import Signer

SUPERLINK_PATIENCE_S: Final = 5.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the settings file describes."""
    link_path, settings_path = (Path(str(context.run_config[key])) for key in APP_KEYS)
    post = Post(grid, SUPERLINK_PATIENCE_S)
    serve(post, link_path, RunSettings.read(settings_path))


def serve(post: Mail, link_path: Path, settings: RunSettings) -> None:
    """Run, or go on with, the run of `settings` until it ends or its gateway is gone; logged."""
    happenings: Happenings = Happenings()
    folder = Path(settings.run_folder)
    with run_log(folder), ExitStack() as open_now:
        journal = open_now.enter_context(Journal.open(folder / JOURNAL))
        link = open_now.enter_context(Link(link_path, happenings.put))
        checkpoints = Checkpoints(folder)
        anchors = Anchors(Path(settings.anchors))
        orders = Orders(settings, Signer(Path(settings.signing_key).read_bytes()), anchors)
        standing = Standing(
            load_aggregation(settings),
            model_path=checkpoints.path,
            update_path=link.blob_path,
        )
        parts = RunParts(
            post=post,
            link=link,
            journal=journal,
            files=RunFiles(folder),
            checkpoints=checkpoints,
            settings=settings,
            orders=orders,
            anchors=anchors,
            life=Life(standing, orders),
            measuring=_measuring(settings, happenings, open_now),
            happenings=happenings,
        )
        Runner(parts).run()


def _measuring(
    settings: RunSettings, happenings: Happenings, open_now: ExitStack
) -> Measuring | None:
    if settings.plan.central is None:
        return None
    from fedfactory.coordinator.running.central import CentralEvaluator

    terms = settings.plan.terms
    public = Path(settings.run_folder) / CENTRAL
    evaluator = CentralEvaluator(terms.task, terms.task_parameters, public)
    return open_now.enter_context(Measuring(evaluator, happenings.put))
