"""A coordinator's word that a run is over: what the run still holds of the budget returns.

It can only give back what its own run holds, so it is believed on the coordinator's key alone.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fedfactory.contracts.errors import FedfactoryError, IdentityError
from fedfactory.contracts.plans import Anchor, SignedRunEnded
from fedfactory.identity.signing import verify
from fedfactory.privacy.entries import RunKey
from site_agents.books import Books
from site_agents.policy import PolicyFileError
from site_agents.policy_file import load_policy

log = logging.getLogger("site_agents.ending")


def end_run(signed: SignedRunEnded, *, site: str, policy_file: Path, books: Books) -> Anchor | None:
    """Release a run, and return where the books stand; None if it is not believed or not known."""
    ending = signed.run_ended
    try:
        _believe(signed, site, policy_file)
    except (IdentityError, PolicyFileError) as error:
        books.unauthorised.note("ending", str(error))
        return None
    try:
        run = RunKey(coordinator=ending.coordinator, run_id=ending.run_id)
        released = books.release(run, ending.terms_digest)
    except FedfactoryError as error:
        log.warning("the word that a run is over is not taken: %s", error)
        return None
    if released:
        log.info("a run of %s is over: what it held has returned", ending.coordinator)
    return books.anchor()


def _believe(signed: SignedRunEnded, site: str, policy_file: Path) -> None:
    """Check that an ending is a pinned coordinator's, for this site.

    Raises:
        IdentityError: it is not.
        PolicyFileError: the policy, which pins the keys, does not hold.
    """
    key = verify(signed.run_ended, signed.signature)
    if load_policy(policy_file).coordinators.get(signed.run_ended.coordinator) != key:
        raise IdentityError("the policy does not pin the key that signs")
    if signed.run_ended.site != site:
        raise IdentityError("it is another site's")
