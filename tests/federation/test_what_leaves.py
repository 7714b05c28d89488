"""Every byte that leaves the sites in a run, searched for their records.

A byte search proves no privacy; it shows that nothing ships data by mistake.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from fedfactory.tasks.table import load_task
from site_agents.data.sources import open_source
from tests.federation.conftest import Launcher

pytestmark = pytest.mark.federation
RECORDER = Path(__file__).parent / "recorder"


@pytest.mark.rule("33")
def test_no_record_leaves_in_any_form(launch: Launcher, tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    federation = launch(
        "rounds=2",
        "local_epochs=1",
        env={"PYTHONPATH": str(RECORDER), "RECORD_FOLDER": str(records)},
    )
    assert federation.wait() == 0, federation.output()
    traffic = federation.summary()["bytes"]
    config = yaml.safe_load((federation.out / "config.yaml").read_text())
    options = {
        "kind": "partition",
        "task": "digits",
        "path": None,
        "partition": config["partition"],
        "sites": ["cesga", "cyfronet", "lumi"],
        "seed": config["seed"],
    }
    for site in options["sites"]:
        left = (records / site).read_bytes()
        assert len(left) >= traffic[site]["up"] > 2 * 400_000  # the record is of the whole run
        source = open_source("share", {**options, "site": site}, "share")
        data = source.load(load_task("digits"), {"model": "mlp"})
        for x in np.concatenate([data.train.x, data.test.x]):
            raw = x * 16
            for form in (
                x.astype(np.float32),
                x.astype(np.float64),
                raw.astype(np.uint8),
                raw.astype(np.float32),
                raw.astype(np.float64),
                raw.astype(np.int64),
            ):
                assert form.tobytes() not in left
            assert ",".join(f"{v:g}" for v in raw).encode() not in left
