"""Which models and strategy memories a run still needs, and which may go. Pure."""

from __future__ import annotations

from fedfactory.contracts.model import BlobRef
from fedfactory.rounds.state import RunState


def needed(state: RunState) -> frozenset[str]:
    """Return the digests that must stay readable.

    The newest model and memory, what can be fallen back to, the best model as of each of these, and
    what orders and waiting updates of an async run started from.
    """
    refs: list[BlobRef | None] = [state.model, state.strategy_state]
    for finished in state.finished:
        refs += [finished.model, finished.state, finished.judgement.best_model]
    refs += [order.model for order in state.async_.under_way]
    refs += [update.model for update in state.async_.waiting]
    refs += [state.ended.model] if state.ended is not None else []
    return frozenset(ref.digest for ref in refs if ref is not None)


def dropped(state: RunState) -> tuple[BlobRef, ...]:
    """Return what is stored and no longer needed, each once."""
    keep = needed(state)
    return tuple(ref for ref in state.stored if ref.digest not in keep)


def with_stored(stored: tuple[BlobRef, ...], *more: BlobRef | None) -> tuple[BlobRef, ...]:
    """Return `stored` with what was made now, each digest once."""
    known = {ref.digest: ref for ref in (*stored, *(ref for ref in more if ref is not None))}
    return tuple(known.values())
