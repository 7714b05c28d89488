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
    "bad_model": "the base model does not fit the site's own model",
    "policy_task": "the site's policy does not allow this task",
    "policy_parameters": "the site's policy does not allow these parameters",
    "policy_privacy": "the site cannot give the privacy mode that was asked for",
    "too_few_examples": "the site holds fewer examples than its policy asks for",
    "expired": "the order arrived after its time",
    "conflict": "another order for the same round was already begun",
    "transfer_failed": "the base model could not be fetched whole",
    # said by a site once work began
    "work_failed": "the work failed at the site; the site's own log says why",
    "worker_lost": "the site's worker died, and died again when the order was retried",
    "timed_out": "the work took longer than the order allows",
    "egress_refused": "the site's egress guard held the result back",
    # found by the coordinator
    "bad_reply": "the reply does not have the agreed form",
    "bad_update_form": "the update does not have the declared tensors, shapes, dtypes or size",
    "bad_update_values": "the update holds non-finite numbers",
    "missing_update": "the update's bytes never arrived whole",
    "no_answer": "no answer before the deadline",
    "offline": "the site was not connected, and did not come back before the deadline",
}
