"""How a run ends: completed, failed or stopped, and with which model."""

from __future__ import annotations

from dataclasses import replace

from fedfactory.contracts.model import BlobRef
from fedfactory.rounds.events import Command, Event, Finish, RunFailed, Status, StopRequested
from fedfactory.rounds.state import RunState

Step = tuple[RunState, tuple[Command, ...]]


def finish(state: RunState, status: Status, reason: str) -> Step:
    """End the run with the model of its last finished round, or its best if that is to be kept."""
    end = Finish(status=status, reason=reason, model=model_to_keep(state))
    return replace(state, phase="done", ended=end), (end,)


def model_to_keep(state: RunState) -> BlobRef:
    """Return the model that the run would end with now."""
    assert state.plan is not None
    last = state.finished[-1]
    if state.plan.evaluation.keep == "best" and last.judgement.best_model is not None:
        return last.judgement.best_model
    return last.model


def complete(state: RunState, reason: str) -> Step:
    """End a run that has done its rounds; it is no success if a required site was never in it."""
    assert state.plan is not None
    rules, judged = state.plan.evaluation, state.finished[-1].judgement
    if (rules.keep == "best" or rules.patience is not None) and judged.best_value is None:
        reason += f"; nothing ever measured its {rules.metric}, so the last model is kept"
    if absent := [s for s in state.plan.rules.required if s not in state.took_part]:
        who = ", ".join(f"'{site}'" for site in absent)
        return finish(state, "failed", f"the required site {who} never took part ({reason})")
    return finish(state, "completed", reason)


def stop(state: RunState, event: StopRequested) -> Step:
    """End on request: at once, or after the round if that was asked for and nobody asked before."""
    if event.after_round and state.stopping is None:
        return replace(state, stopping=event.reason), ()
    return finish(state, "stopped", event.reason)


def fail(state: RunState, event: RunFailed) -> Step:
    """End because something outside the rounds broke."""
    return finish(state, "failed", event.reason)


def ignore(state: RunState, event: Event) -> Step:  # noqa: ARG001
    """Change nothing."""
    return state, ()
