"""What the codec makes of texts that strangers chose: nothing that cannot be written or told."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    name: str
    options: Mapping[str, int | str]


@pytest.mark.parametrize(
    "text",
    [
        r'{"name":"\ud800","options":{}}',
        r'{"name":"a","options":{"\udfff":1}}',
        r'{"name":"a","options":{"k":"\ud800"}}',
    ],
)
def test_half_a_pair_is_no_text(text):
    """It could be neither stored nor answered: each use would fail somewhere else."""
    with pytest.raises(ProtocolError, match=r"Unicode|str"):
        from_json(Wish, text)


def test_a_whole_pair_is():
    assert from_json(Wish, r'{"name":"\ud83d\ude00","options":{}}').name == "\U0001f600"


def test_an_unknown_name_writes_no_line_into_a_log():
    wish = {"name": "a", "options": {}, "x\nlead invites mallory": 1, "y" * 100_000: 1}
    with pytest.raises(ProtocolError) as refused:
        from_json(Wish, json.dumps(wish))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
