"""What ends: a phase, a round, a run. Models are durable before the journal speaks of them."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from typing import Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.coordinator.aggregating.aggregation import AggregationError, UpdateFaultError
from fedfactory.coordinator.running.asking import Asking, message
from fedfactory.coordinator.running.checkpoints import MODELS
from fedfactory.coordinator.running.link import LinkClosedError, Replied
from fedfactory.coordinator.running.run_parts import RunParts
from fedfactory.coordinator.running.standing import bases
from fedfactory.rounds.events import (
    Aggregate,
    AggregateMetrics,
    AggregationFailed,
    CentralMeasured,
    Event,
    Finish,
    MeasureCentrally,
    MetricsAggregated,
    ModelAggregated,
    RecordRound,
    UpdateRefused,
)
from fedfactory.rounds.summary import metrics_line, summary

log = logging.getLogger("fedfactory.runner")

# How long the sites that are here have to hear that a run is over.
ENDING_WAIT_S: Final = 5.0


class Closing:
    """Makes models, combines metrics, records rounds and ends the run."""

    def __init__(self, parts: RunParts, asking: Asking) -> None:
        self._parts = parts
        self._asking = asking

    def aggregate(self, command: Aggregate) -> Event:
        """Make the round's model; it and the strategy's memory are on disk when this returns."""
        standing, checkpoints = self._parts.life.standing, self._parts.checkpoints
        out = checkpoints.workplace / f"round-{command.round}.safetensors"
        try:
            model = standing.close(command, out)
            state = standing.save(checkpoints.workplace)
        except UpdateFaultError as error:
            cause = error.__cause__
            raised = None if isinstance(cause, FedfactoryError) else cause  # by the strategy's code
            log.warning("round %d: %s", command.round, error.public_message, exc_info=raised)
            return UpdateRefused(
                at=time.time(),
                round=error.order_round,
                site=error.site,
                code="bad_reply",
                detail=error.detail,
            )
        except AggregationError as error:
            return aggregation_failed(command.round, error)
        checkpoints.keep(out, model)
        if state is not None:
            checkpoints.keep(checkpoints.new(state), state)
        return ModelAggregated(at=time.time(), round=command.round, model=model, state=state)

    def combine(self, command: AggregateMetrics) -> Event:
        """Combine the round's evaluations."""
        life = self._parts.life
        found = [
            answer for answer in life.state.answers("evaluate") if answer.site in command.sites
        ]
        try:
            metrics = life.standing.metrics(command.round, found)
        except AggregationError as error:
            return aggregation_failed(command.round, error)
        return MetricsAggregated(at=time.time(), round=command.round, metrics=metrics)

    def measure(self, command: MeasureCentrally) -> Event | None:
        """Begin to measure a model; None: the result comes later, as a happening."""
        if self._parts.measuring is None:
            return CentralMeasured(at=time.time(), round=command.round, metrics={})
        self._parts.measuring.measure(command.round, self._parts.checkpoints.path(command.model))
        return None

    def record(self, command: RecordRound) -> None:
        """Write the round's line; give up its updates, and the files nobody needs any more."""
        life, link = self._parts.life, self._parts.link
        self._parts.files.metrics(metrics_line(life.history, command.round))
        link.discard(digest for _, digest in life.spent_claims())
        kept = {ref.digest for ref in life.state.stored}  # equal bytes may have been made again
        self._parts.checkpoints.drop(ref for ref in command.drop if ref.digest not in kept)
        link.discard(self._asking.forget(bases(life.state)))

    def finish(self, command: Finish) -> None:
        """Tell the sites, give up the updates, write summary.json."""
        parts, life = self._parts, self._parts.life
        if parts.settings.plan.terms.privacy is not None and command.status != "failed":
            self._tell_sites()  # a failed run may be taken up again, with what the sites hold
        parts.link.discard(digest for _, digest in life.claims)
        life.claims.clear()
        name = command.model.digest.removeprefix("sha256:")
        parts.files.summary(
            summary(
                life.history,
                command,
                traffic=parts.link.traffic(),
                model_file=f"{MODELS}/{name}",
            )
        )

    def _tell_sites(self) -> None:
        """Tell the sites that are here that the run is over, so that their holds return."""
        try:
            self._send_endings()
        except LinkClosedError:
            raise
        except (OSError, FedfactoryError):
            log.exception("the sites could not be told that the run is over")

    def _send_endings(self) -> None:
        parts = self._parts
        here = [s for s in parts.grid.nodes if s not in parts.life.state.offline]
        messages = [
            message(
                parts.grid.nodes[site], "query", parts.orders.ending(site), group=0,
                ttl=ENDING_WAIT_S,
            )
            for site in here
        ]  # fmt: skip
        waiting = {sent for sent in parts.grid.push_messages(messages) if sent}
        end = time.monotonic() + ENDING_WAIT_S
        while waiting and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                happening = parts.happenings.get(timeout=left)
                if isinstance(happening, Replied):
                    waiting.discard(happening.message)
                elif getattr(happening, "event", "") == "closed":
                    raise LinkClosedError


def aggregation_failed(number: int, error: AggregationError) -> AggregationFailed:
    """Log what a strategy raised, with its traceback, and return the event of it."""
    log.warning("round %d: %s %s", number, error.public_message, error.diagnostic or "")
    return AggregationFailed(at=time.time(), round=number, reason=error.public_message)
