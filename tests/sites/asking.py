"""A coordinator's questions to the site of rig.py, well signed unless a test says otherwise."""

from __future__ import annotations

import secrets
import time
from typing import Any

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.plans import Anchor, RunTerms, SignedTerms
from fedfactory.contracts.questions import (
    Answer,
    LogsRequest,
    Query,
    SignedLogsRequest,
    SignedQuery,
)
from fedfactory.identity.signing import Signer
from site_agents.questions import Questions
from tests.sites.rig import HUB, SITE, Coordinator, Site


def questions_of(site: Site, **changes: Any) -> Questions:
    values: dict[str, Any] = {
        "site": SITE, "home": site.home, "books": site.books, "executor": site.executor,
        "sources": frozenset({"cohort"}),
    }  # fmt: skip
    return Questions(**{**values, **changes})


def signed(hub: Coordinator, question: Query, key: Signer | None = None) -> str:
    return to_json(SignedQuery(query=question, signature=(key or hub.key).sign(question)))


def about_plan(
    site: Site,
    terms: RunTerms | None = None,
    *,
    key: Signer | None = None,
    operator: Signer | None = None,
    to: str = SITE,
    receipt: Anchor | None = None,
) -> str:
    hub = site.coordinator
    terms = terms or hub.terms()
    plan = SignedTerms(terms=terms, signature=(operator or hub.operator).sign(terms))
    return signed(hub, Query(site=to, signed=plan, receipt=receipt, logs=None), key)


def about_logs(
    site: Site,
    *,
    key: Signer | None = None,
    operator: Signer | None = None,
    to: str = SITE,
    of: str = SITE,
    **changes: Any,
) -> str:
    hub = site.coordinator
    values: dict[str, Any] = {
        "coordinator": HUB, "run_id": "run-1", "site": of, "nonce": secrets.token_hex(8),
        "not_after": time.time() + 60,
    }  # fmt: skip
    wanted = LogsRequest(**{**values, **changes})
    wish = SignedLogsRequest(request=wanted, signature=(operator or hub.operator).sign(wanted))
    return signed(hub, Query(site=to, signed=None, receipt=None, logs=wish), key)


def fitness(site: Site, text: str) -> str:
    answer = questions_of(site).answer(text)
    assert isinstance(answer, Answer)
    assert answer.preflight is not None
    return answer.preflight.code
