"""What approve and deny share: what was looked at is shown again, recorded, then decided."""

from __future__ import annotations

import argparse

from fedfactory.cli.forms import tell_done
from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.lease import holder_of
from site_agents.approvals import Approvals
from site_agents.cli.approvals import shown
from site_agents.cli.home import find_home
from site_agents.cli.recording import record
from site_agents.person import person


def decide(asked: argparse.Namespace, *, approved: bool) -> int:
    """Decide on the update with the id `asked.id`; return 0 once it is durable.

    The audit chain has it before it holds: a site whose chain is broken lets nothing go.

    Raises:
        UsageError: nothing waits under that id.
        IntegrityError, EnvironmentFailedError: it cannot be recorded; nothing was decided.
    """
    home, reason, by = find_home(asked.home), asked.reason, person()
    approvals = Approvals(home)
    one = approvals.find(asked.id)
    if not (asked.json or asked.quiet):
        print("\n".join([*shown(one), ""]))
    record(
        home,
        "approved" if approved else "denied",
        actor=by,
        reason=reason,
        work=one.work_id,
        update=one.leaving.update,
        plan=one.leaving.terms_digest,
    )
    try:
        approvals.decide(one, approved=approved, by=by, reason=reason)
    except OSError as error:
        raise EnvironmentFailedError(
            f"the decision cannot be written ({error.strerror}): nothing was decided"
        ) from error
    word = "approved: it leaves" if approved else "denied: the coordinator is told so"
    soon = (
        "within a second" if holder_of(home, "agent") else "when an agent runs here; none does now"
    )
    return tell_done(asked, f"{word} {soon}", id=one.leaving.id, approved=approved)
