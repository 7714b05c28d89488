"""The strategy's side of a run: its plans, and the updates it was given since the last model.

What stands is told by the machine's state, so a resumed run gives the strategy its memory back and
makes the same calls again from there (`catch_up`): the same calls give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.coordinator.aggregating.aggregation import Aggregation, SitePlan
from fedfactory.rounds.events import Aggregate, ReplyAccepted, SendOrders
from fedfactory.rounds.state import RunState

Claim = tuple[str, str]  # a site, and the digest of what it uploaded


class Standing:
    """`model_path` and `update_path` say where files lie."""

    def __init__(
        self,
        aggregation: Aggregation,
        *,
        model_path: Callable[[BlobRef], Path],
        update_path: Callable[[str], Path],
    ) -> None:
        self._aggregation = aggregation
        self._model_path = model_path
        self._update_path = update_path
        self._plans: dict[tuple[int, WorkKind, str], SitePlan] = {}

    def plans(self, command: SendOrders, state: RunState) -> dict[str, SitePlan]:
        """Return what each site is asked; a site that the strategy leaves out is not in it.

        Raises:
            AggregationError: the strategy cannot plan.
        """
        number, kind = command.round, command.kind
        unknown = any((number, kind, site) not in self._plans for site in command.sites)
        if not command.again or (is_async(state) and kind == "train" and unknown):
            self._plan(command, state)
        return {
            site: self._plans[number, kind, site]
            for site in command.sites
            if (number, kind, site) in self._plans
        }

    def close(self, command: Aggregate, out: Path) -> BlobRef:
        """Let the strategy make the next model, in `out`. Raises AggregationError."""
        return self._aggregation.close(out, command.updates)

    def save(self, folder: Path) -> BlobRef | None:
        """Let the strategy write what it remembers into `folder`. Raises AggregationError."""
        return self._aggregation.save(folder)

    def metrics(self, number: int, answers: Iterable[ReplyAccepted]) -> dict[str, float]:
        """Let the strategy combine evaluations. Raises AggregationError."""
        found = {answer.site: answer.update for answer in answers}
        return self._aggregation.aggregate_metrics(number, found)

    def offer(self, answer: ReplyAccepted, state: RunState) -> None:
        """Give the strategy a counted update."""
        payload = answer.update.payload
        assert payload is not None
        started_from = (
            waiting.version for waiting in state.async_.waiting if waiting.answer is answer
        )
        self._aggregation.offer(
            answer.site,
            answer.update,
            self._update_path(payload.blob.digest),
            order_round=answer.round,
            staleness=state.version - next(started_from, state.version),
        )

    def resolve_absent(self, site: str) -> None:
        """Tell the strategy that no update of an awaited site will come: it need not wait."""
        self._aggregation.resolve_absent(site)

    def open_async(self, state: RunState) -> None:
        """Begin the aggregate of an async run's next model with the updates that wait."""
        assert state.model is not None
        path = self._model_path(state.model)
        self._aggregation.open_round(state.version + 1, path, ())
        for waiting in state.async_.waiting:
            self.offer(waiting.answer, state)

    def open_again(self, state: RunState) -> None:
        """Begin the aggregate under way anew: an update that it was given counts no longer."""
        assert state.model is not None
        if is_async(state):
            self.open_async(state)
        elif state.phase in ("training", "aggregating"):
            self._open_sync(state.round, self._model_path(state.model), state)

    def catch_up(self, state: RunState) -> None:
        """Give the strategy its memory back and make again the calls since it was written.

        Raises:
            IntegrityError: the file is not the memory of such a strategy.
            AggregationError: the strategy does otherwise than it did the first time.
        """
        memory = state.strategy_state
        self._aggregation.restore(None if memory is None else self._model_path(memory))
        for command in _planned(state, "evaluate"):
            self._plan(command, state)
        if state.evaluated:
            self.metrics(state.version, state.evaluated)
        if is_async(state):
            self.open_async(state)
            return
        for command in _planned(state, "train"):
            self._plan(command, state)

    def _plan(self, command: SendOrders, state: RunState) -> None:
        """Let the strategy plan; a sync round's aggregate begins anew with what was accepted."""
        kind, path = command.kind, self._model_path(command.model)
        number = state.version + 1 if is_async(state) and kind == "train" else command.round
        ask = self._aggregation.plan_train if kind == "train" else self._aggregation.plan_evaluate
        plans = ask(number, command.model, path, command.sites)
        for key in [key for key in self._plans if _is_over(key, command, state)]:
            del self._plans[key]
        for plan in plans:
            self._plans[command.round, kind, plan.site] = plan
        if kind == "train" and not is_async(state):
            self._open_sync(number, path, state)

    def _open_sync(self, number: int, path: Path, state: RunState) -> None:
        awaited = tuple(sorted(site for _, _, site in self._plans))
        self._aggregation.open_round(number, path, awaited)
        for answer in state.answers("train"):
            self.offer(answer, state)


def is_async(state: RunState) -> bool:
    """Whether the run is an async one."""
    return state.plan is not None and state.plan.is_async


def waiting_updates(state: RunState) -> tuple[ReplyAccepted, ...]:
    """Return the accepted updates that are in no model yet."""
    if is_async(state):
        return tuple(waiting.answer for waiting in state.async_.waiting)
    return state.answers("train") if state.phase in ("training", "aggregating") else ()


def _planned(state: RunState, kind: WorkKind) -> tuple[SendOrders, ...]:
    """Return the plannings of this kind that were performed.

    The open phase's is performed still if its orders were never told of.
    """
    open_phase = state.phase in ("training", "evaluating")
    known = state.planned[:-1] if open_phase and not state.sync.reached else state.planned
    return tuple(command for command in known if command.kind == kind)


def claims_of(answers: Iterable[ReplyAccepted]) -> set[Claim]:
    """Return the uploads that these answers name."""
    uploads = ((answer.site, answer.update.payload) for answer in answers)
    return {(site, payload.blob.digest) for site, payload in uploads if payload is not None}


def bases(state: RunState) -> Mapping[str, BlobRef]:
    """Return, by digest, the models that orders start from: those under way, and the newest."""
    found = [order.model for order in state.async_.under_way]
    found += [] if state.model is None else [state.model]
    return {ref.digest: ref for ref in found}


def _is_over(key: tuple[int, WorkKind, str], command: SendOrders, state: RunState) -> bool:
    """Whether a plan belongs to orders that these ones follow."""
    number, kind, site = key
    if is_async(state) and command.kind == "train":
        return kind == "train" and site in command.sites
    return (number, kind) != (command.round, command.kind)
