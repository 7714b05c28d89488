"""The Flower ServerApp of a run: opens its journal and link, and hands over to the runner."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedfactory.coordinator.aggregating.strategy_loading import load_aggregation
from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.flower_seam import assume_app_identity
from fedfactory.coordinator.run_settings import CENTRAL, RunSettings
from fedfactory.coordinator.running.checkpoints import Checkpoints
from fedfactory.coordinator.running.journal import JOURNAL, Journal
from fedfactory.coordinator.running.life import Life
from fedfactory.coordinator.running.link import Link, LinkRing, Replied
from fedfactory.coordinator.running.measuring import Measuring
from fedfactory.coordinator.running.ordering import Orders
from fedfactory.coordinator.running.run_files import RunFiles
from fedfactory.coordinator.running.run_grid import RunGrid
from fedfactory.coordinator.running.run_log import run_log
from fedfactory.coordinator.running.run_parts import Happenings, RunParts
from fedfactory.coordinator.running.runner import Runner
from fedfactory.coordinator.running.standing import Standing
from fedfactory.identity.signing import Signer


def serve(daemon: socket.socket, settings: RunSettings) -> None:
    """Run, or go on with, the run of `settings` until it ends or the daemon is gone; logged.

    The journal is opened first: another process that is still at it is waited for, or ends us.
    """
    happenings: Happenings = Happenings()
    folder = Path(settings.run_folder)
    grid = RunGrid()

    def hear(happened: LinkRing | Replied) -> None:
        if isinstance(happened, Replied):
            grid.keep(happened)
        happenings.put(happened)

    with run_log(folder), ExitStack() as open_now:
        journal = open_now.enter_context(Journal.open(folder / JOURNAL))
        link = open_now.enter_context(Link(daemon, hear))
        greeting = link.hello()
        grid.open(link, greeting)
        assume_app_identity(greeting.run)
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            del context  # what a run is told stands in its settings
            assert isinstance(grid, RunGrid)
            measuring = _measuring(settings, happenings, open_now)
            parts = _parts(
                settings, grid, link, connected=greeting.connected, journal=journal,
                measuring=measuring, happenings=happenings,
            )  # fmt: skip
            Runner(parts).run()

        app(grid, Context(greeting.run, 0, {}, RecordDict(), {}))


def _parts(
    settings: RunSettings,
    grid: RunGrid,
    link: Link,
    *,
    connected: tuple[str, ...],
    journal: Journal,
    measuring: Measuring | None,
    happenings: Happenings,
) -> RunParts:
    folder = Path(settings.run_folder)
    checkpoints = Checkpoints(folder)
    anchors = Anchors(Path(settings.anchors))
    orders = Orders(settings, Signer(Path(settings.signing_key).read_bytes()), anchors)
    standing = Standing(
        load_aggregation(settings),
        model_path=checkpoints.path,
        update_path=link.blob_path,
    )
    return RunParts(
        grid=grid,
        link=link,
        connected=connected,
        journal=journal,
        files=RunFiles(folder),
        checkpoints=checkpoints,
        settings=settings,
        orders=orders,
        anchors=anchors,
        life=Life(standing, orders),
        measuring=measuring,
        happenings=happenings,
    )


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
