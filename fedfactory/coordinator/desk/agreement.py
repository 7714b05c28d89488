"""Whether this coordinator runs a submitted plan: signed for it, in time, in its limits. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fedfactory.contracts.codec import encode
from fedfactory.contracts.errors import UsageError, ValueRangeError
from fedfactory.contracts.plans import STRATEGY_TARGET
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.operations import STANDS, Finding

# It names a folder: no more than letters, digits and the few marks of our own ids.
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NONCE: Final = re.compile(r"[0-9a-f]{16,128}")
_HYDRA_KEY: Final = re.compile(r"_[a-z]+_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a coordinator takes at most: rounds and sites of a run, bytes of a model."""

    max_rounds: int
    max_sites: int
    max_model_bytes: int


def check_agreement(plan: RunPlan, *, coordinator: str, limits: Limits, now: float) -> None:
    """Check a plan by itself; `now` is Unix seconds.

    Raises:
        UsageError: says which value is wrong, and what was expected.
    """
    terms = plan.terms
    if not _RUN_ID.fullmatch(terms.run_id):
        raise ValueRangeError("run_id", terms.run_id[:80], "1 to 64 letters, digits, '_', '-'")
    if not _NONCE.fullmatch(terms.nonce):
        raise UsageError("the plan's nonce must be 16 to 128 hex digits")
    if terms.coordinator != coordinator:
        raise UsageError(
            f"the plan is signed for the coordinator '{terms.coordinator}', and this is"
            f" '{coordinator}': sign it for this one"
        )
    if terms.not_after <= now:
        raise UsageError("the plan's time is over: sign it again")
    _check_limits(plan, limits)
    for site in terms.sites:
        Peer(role=Role.SITE, name=site)
    _check_no_code(plan)


def can_begin(plan: RunPlan, findings: Iterable[Finding]) -> str | None:
    """Return why the run cannot begin without the sites of `findings`, or None if it can."""
    unfit = {finding.site: finding.code for finding in findings}
    fit = [site for site in plan.terms.sites if site not in unfit]
    if missing := sorted(unfit.keys() & set(plan.rules.required)):
        named = ", ".join(f"{site} ({unfit[site]})" for site in missing)
        return f"{named}: required, and cannot take part now"
    if len(fit) < plan.rules.quorum:
        return (
            f"{len(fit)} of {len(plan.terms.sites)} sites can take part now, and the quorum is"
            f" {plan.rules.quorum}"
        )
    return None


def why_not_resumed(plan: RunPlan, status: str, now: float) -> str | None:
    """Return why a run of this status does not go on, None if it can; `now` is Unix seconds."""
    anew = f"start a new run from its model (model={plan.terms.run_id})"
    if status not in ("suspended", "failed", "stopped"):
        return f"{STANDS[status]}: only suspended, failed and stopped ones resume"
    if plan.terms.not_after <= now:
        return f"has a signed plan that has ended, and sites would refuse it: {anew}"
    if status == "stopped" and plan.terms.privacy is not None:
        return (
            "was stopped, and its sites have taken back the privacy budget that they held for it:"
            f" {anew}"
        )
    return None


def _check_limits(plan: RunPlan, limits: Limits) -> None:
    terms = plan.terms
    _within("rounds", terms.rounds, 1, limits.max_rounds)
    _within("the number of sites", len(terms.sites), 1, limits.max_sites)
    _within("the model's bytes", terms.initial.bytes, 1, limits.max_model_bytes)
    least, most = terms.initial.bytes, 2 * limits.max_model_bytes
    _within("max_model_bytes", terms.max_model_bytes, least, most)
    if plan.central is not None:
        _within("the public data set's bytes", plan.central.bytes, 1, limits.max_model_bytes)
    _within("checkpoints", plan.checkpoints, 1, limits.max_rounds)


def _check_no_code(plan: RunPlan) -> None:
    """Refuse every key by which a framework would make an object, but a strategy's own class."""
    terms = plan.terms
    options = [key for key in terms.strategy_options if key != STRATEGY_TARGET]
    rest = replace(plan.signed, terms=replace(terms, strategy_options={}))
    elsewhere = _keys(encode(replace(plan, signed=rest)))
    for key in (*options, *elsewhere):
        if _HYDRA_KEY.fullmatch(key):
            raise UsageError(
                f"{key}: only strategy.{STRATEGY_TARGET} may name a class, and nothing else may"
                " stand there"
            )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _keys(item)


def _within(what: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        raise ValueRangeError(what, found, f"a whole number from {least} to {most}")
