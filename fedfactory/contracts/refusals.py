"""Why a site does not do, or a coordinator does not take, a piece of work: stable codes.

Only the code crosses the wire; each side reads the sentence from this table, so no site-chosen
text reaches the coordinator and no coordinator-chosen text comes back from a site.
"""

from __future__ import annotations

from typing import Final

REFUSALS: Final[dict[str, str]] = {
    # said by a site before it touches data
    "bad_order": "the order does not have the agreed form",
    "unknown_task": "the site has no task of that name",
    "bad_parameters": "a parameter is outside the task's schema",
    "bad_model": (
        "the base model does not fit the site's own model, or, with differential privacy, the"
        " model cannot be trained record by record; the site's worker log says which"
    ),
    "not_repeatable": (
        "the site's device does not give one record the same gradient twice, so it does no private"
        " work"
    ),
    "not_authorised": "no signature by a coordinator and an operator that the site's policy pins",
    "outside_plan": "the order asks for more than its signed plan allows",
    "policy_task": "the site's policy does not allow this task",
    "policy_parameters": "the site's policy does not allow these parameters",
    "policy_strategy": "the site's policy does not allow the run's strategy",
    "policy_base": (
        "the base model holds numbers that are not finite, or larger than the site's policy allows"
    ),
    "policy_privacy": (
        "the site's policy asks for more privacy: differential privacy, a smaller epsilon or delta,"
        " fewer evaluations, or more steps in a round"
    ),
    "policy_limits": "the run's rounds, GPU-hours or the hour of the day are outside the policy",
    "plan_too_long": "the signed plan ends later than the site's policy allows",
    "policy_egress": "a person at the site did not let the result leave",
    "no_policy": "the site's policy file does not hold; the site takes no work",
    "budget_exhausted": "what the site's privacy budget has left does not cover the plan",
    "books_broken": "the site's ledger or audit chain does not hold; the site takes no work",
    "no_receipt": (
        "the coordinator sends no receipt of the site's books any more: if it was founded anew, the"
        " site's administrator can accept that (site-agent ledger accept-coordinator)"
    ),
    "paused": "the site's administrator paused or drained it",
    "killed": "the site's administrator stopped the work",
    "no_data": "the site names no data for this task, or its data does not fit",
    "too_few_examples": "the site holds fewer examples than its policy asks for",
    "expired": "the order arrived after its time",
    "conflict": "another order for the same round was already begun",
    "transfer_failed": (
        "the site could not fetch the order's model whole, or no longer has the result to send"
    ),
    # said by a site once work began
    "work_failed": "the work failed at the site; the site's own log says why",
    "worker_lost": "the site's worker died, and died again when the order was retried",
    "timed_out": "the work took longer than the order allows",
    "egress_refused": "the site's egress guard held the result back",
    # found by the coordinator
    "bad_reply": "the reply does not have the agreed form",
    "bad_update_form": "the update does not have the declared tensors, shapes, dtypes or size",
    "bad_update_values": "the update holds non-finite numbers",
    "bad_update_norm": "the update's norm is above the bound that was known before the round",
    "missing_update": "the update's bytes never arrived whole",
    "no_answer": "no answer before the deadline",
    "offline": "the site was not connected, and did not come back before the deadline",
    "not_needed": "enough others had answered before it",
    "revoked": "the consortium's lead revoked the site's certificate",
    "not_enrolled": "no site of that name is enrolled in the consortium",
}
