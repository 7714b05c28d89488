"""Receipts: what a coordinator last saw of a site's books, sent with each order.

A site restored from an old copy finds itself behind its receipt. So a coordinator that sent one
before must send one with new work: to forget it would let the rollback pass. That it ever did is an
entry of the ledger, and is lost with nothing less than the ledger; the newest receipt lies beside.
"""

from __future__ import annotations

from site_agents.policy.facts import shown


def missing_receipt(coordinator: str) -> str:
    """Say what is wrong where a receipt is due and missing, and what the administrator can do."""
    return (
        f"coordinator {shown(coordinator)} sent receipts of these books before, and none now: it"
        " lost its record of them, or hides it. If it was founded anew: site-agent ledger"
        " accept-coordinator NAME --reason TEXT"
    )
