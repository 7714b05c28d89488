"""A plan that a coordinator takes, and ways to change it."""

import dataclasses
import hashlib
import secrets
import time

import numpy as np

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import SignedTerms
from fedfactory.identity.signing import Signer, new_signing_key
from fedfactory.wire.arrays import write_arrays
from tests.run_plans import SITES, run_plan

SIGNER = Signer(new_signing_key())
COORDINATOR = "alliance"
INITIAL = BlobRef(digest="sha256:" + hashlib.sha256(b"m").hexdigest(), bytes=1000)


def plan_of(run_id="run-1", initial=INITIAL, *, signer=SIGNER, **changes):
    """The plan with changes: of its own fields, of its terms', its rules' and its evaluation's."""
    values = {
        "coordinator": COORDINATOR,
        "task": "echo",
        "task_parameters": {"parameters": 64},
        "max_model_bytes": 2 * initial.bytes,
        "nonce": secrets.token_hex(16),
        "not_after": time.time() + 3600,
        "deadline_s": 60.0,
        "lateness_s": 5.0,
        "retries": 1,
        "checkpoints": 2,
        "metric": "accuracy",
        "higher_is_better": True,
        **changes,
    }
    plan = run_plan(run_id=run_id, initial=initial, **values)
    return changed(plan, signed=signed_by(plan.terms, signer))


def signed_by(terms, signer=SIGNER):
    return SignedTerms(terms=terms, signature=signer.sign(terms))


def model(path):
    """Write a small model to a file and return its reference."""
    return write_arrays(path, {"weight": np.arange(16, dtype=np.float32)})


def changed(value, **changes):
    return dataclasses.replace(value, **changes)


__all__ = ["COORDINATOR", "SIGNER", "SITES", "changed", "model", "plan_of", "signed_by"]
