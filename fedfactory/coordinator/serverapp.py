"""The Flower ServerApp: opens its link to the gateway and hands over to the round runner.

The app archive that Flower starts holds one import of `app`; everything is here and beside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.flower_seam import APP_KEYS, bound_retries
from fedfactory.coordinator.link import Link
from fedfactory.coordinator.ordering import Orders
from fedfactory.coordinator.run_files import RunFiles
from fedfactory.coordinator.runner import Runner
from fedfactory.coordinator.settings import RunSettings
from fedfactory.coordinator.strategy_loading import load_aggregation
from fedfactory.identity.signing import Signer

SUPERLINK_PATIENCE_S: Final = 5.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the settings file describes."""
    link_path, settings_path = (Path(str(context.run_config[key])) for key in APP_KEYS)
    bound_retries(grid, SUPERLINK_PATIENCE_S)
    settings = RunSettings.read(settings_path)
    with Link(link_path) as link, RunFiles(Path(settings.run_folder)) as files:
        roster = link.hello()
        anchors = Anchors(Path(settings.anchors))
        signer = Signer(Path(settings.signing_key).read_bytes())
        Runner(
            grid=grid,
            link=link,
            files=files,
            settings=settings,
            orders=Orders(settings, signer, anchors),
            anchors=anchors,
            roster=roster,
            aggregation=load_aggregation(settings, roster),
        ).run()
