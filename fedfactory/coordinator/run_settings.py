"""What a run's process is told, as one file: written by the daemon before it starts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfactory.contracts.bounds import Seconds
from fedfactory.contracts.codec import decode, encode, json_object
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.contracts.versions import check_form, form_stamp
from fedfactory.durable_file import write_durably

CENTRAL: Final = "central.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run: its plan, and where its files lie.

    `signing_key` is the file of the coordinator's private key (PEM), `anchors` the folder of what
    it has seen of sites' books; both outlive the run. `any_strategy_class` lets a Flower strategy's
    `_target_` name any importable class (one machine, one user). The first model is a file named by
    its hex digest in the folder models/ of `run_folder`, the plan's public data set its file
    CENTRAL. `start_timeout_s` bounds the wait for the sites' first connection, in seconds.
    """

    plan: RunPlan
    signing_key: str
    anchors: str
    any_strategy_class: bool
    run_folder: str
    start_timeout_s: Seconds

    def write(self, path: Path) -> None:
        """Write the settings as JSON, 0600, durably and in one piece."""
        write_durably(path, json.dumps({**encode(self), **form_stamp()}, sort_keys=True))

    @classmethod
    def read(cls, path: Path) -> RunSettings:
        """Read what `write` wrote.

        Raises:
            OtherFormError: another version wrote it.
            ProtocolError: these are no settings.
        """
        raw = json_object(path.read_bytes())
        check_form(path.parent.name, raw)
        return decode(cls, {name: raw[name] for name in raw.keys() - form_stamp().keys()})
