"""What a coordinator and its ServerApp are told, as files: written once, before they start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Scalar
from fedfactory.contracts.plans import SignedPlan
from fedfactory.durable_file import write_in_one_piece
from fedfactory.rounds.events import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run: its plan, the terms its operator signed, and where its results go.

    `signing_key` is the file of the coordinator's private key (PEM), `anchors` the folder of what
    it has seen of sites' books; both outlive the run. `strategy_options` are the strategy's own
    fields (for a Flower strategy, with `_target_`). `initial` is the initial model, a file named by
    `initial_file`. `start_timeout_s` bounds the wait for the sites' first connection, in seconds.
    """

    plan: RunPlan
    signed: SignedPlan
    signing_key: str
    anchors: str
    strategy_options: Mapping[str, Scalar | tuple[Scalar, ...]]
    initial: BlobRef
    initial_file: str
    run_folder: str
    start_timeout_s: float

    def write(self, path: Path) -> None:
        """Write the settings as JSON, 0600, in one piece."""
        write_in_one_piece(path, to_json(self))

    @classmethod
    def read(cls, path: Path) -> RunSettings:
        """Read what `write` wrote."""
        return from_json(cls, path.read_text())


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A site admitted to the consortium: its name and its Flower node key (public, PEM)."""

    site: str
    node_public_key: str

    def write(self, roster: Path) -> None:
        """Put the admission into the coordinator's roster folder, in one piece."""
        roster.mkdir(parents=True, exist_ok=True)
        write_in_one_piece(roster / f"{self.site}.json", to_json(self))

    @classmethod
    def read(cls, path: Path) -> Admission:
        """Read what `write` wrote."""
        return from_json(cls, path.read_text())
