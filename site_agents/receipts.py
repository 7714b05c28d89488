"""Receipts: what a coordinator last saw of a site's books, sent with each order.

A site restored from an old copy finds itself behind its receipt. So a coordinator that sent one
before must send one with new work: to forget it would let the rollback pass. That it ever did is an
entry of the ledger, and is lost with nothing less than the ledger; the newest receipt lies beside.
"""

from __future__ import annotations

from fedfactory.contracts.plans import Anchor, Sending
from site_agents.books import Books
from site_agents.policy.facts import shown
from site_agents.refused import RefusedError


def take_receipt(books: Books, sending: Sending) -> None:
    """Check that new work comes with a receipt where one is due; remember a first one.

    Raises:
        RefusedError: the coordinator sent receipts before, and sends none now.
        BooksError, LedgerError: it could not be kept.
    """
    check_receipt(books, sending.order.coordinator, sending.receipt)
    if sending.receipt is not None:
        books.keep_receipt(sending.order.coordinator, sending.receipt)


def check_receipt(books: Books, coordinator: str, receipt: Anchor | None) -> None:
    """Check that there is a receipt where one is due; changes nothing.

    Raises:
        RefusedError: the coordinator sent receipts before, and sends none now.
    """
    if receipt is None and books.expects_receipt(coordinator):
        raise RefusedError("no_receipt", missing_receipt(coordinator))


def missing_receipt(coordinator: str) -> str:
    """Say what is wrong where a receipt is due and missing, and what the administrator can do."""
    return (
        f"coordinator {shown(coordinator)} sent receipts of these books before, and none now: it"
        " lost its record of them, or hides it. If it was founded anew: site-agent ledger"
        " accept-coordinator NAME --reason TEXT"
    )
