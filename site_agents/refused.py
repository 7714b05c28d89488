"""Why a piece of work is not done here, on its way to whoever answers for it."""

from __future__ import annotations


class RefusedError(Exception):
    """`code`, a key of REFUSALS, may leave the site; `finding` stays here."""

    def __init__(self, code: str, finding: str) -> None:
        super().__init__(f"{code}: {finding}")
        self.code = code
