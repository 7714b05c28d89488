"""One line of the chain: how it is written, read and checked. Pure.

A line begins with its link, `{"at", "body", "index", "leaf", "previous"}`; the link's SHA-256 is
the head of the chain after the line. Entry, salt and signature follow and are not part of it: the
head holds them fast and gives nothing of them away. `body` commits to the entry's bytes, which
makes opening a long chain cheap; `leaf` to its fields one by one, so that an export can withhold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import IntegrityError
from site_agents.audit.leaf import commitments, leaf_of, sha256
from site_agents.audit.statements import Checkpoint, sign_checkpoint

# Written by hand so that reading costs one match and two hashes: 100,000 lines open in a second.
_DIGEST: Final = rb"sha256:[0-9a-f]{64}"
_LINE: Final = re.compile(
    rb'(?P<link>\{"at":"(?P<at>[0-9T:.+-]{29})","body":"(?P<body>' + _DIGEST + rb')",'
    rb'"index":(?P<index>[1-9][0-9]{0,14}),"leaf":"(?P<leaf>' + _DIGEST + rb')",'
    rb'"previous":"(?P<previous>' + _DIGEST + rb')")'
    rb',"entry":(?P<entry>\{.*\}),"salt":"(?P<salt>[0-9a-f]{64})"'
    rb',"signature":"(?P<signature>[A-Za-z0-9+/]{86}==)"\}\n'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line as it stands in the file. `index` counts from 1; `entry` is JSON."""

    index: int
    at: str
    body: str
    leaf: str
    previous: str
    entry: bytes
    salt: bytes
    checkpoint: Checkpoint

    @property
    def head(self) -> str:
        """The head of the chain after this line."""
        return self.checkpoint.head

    def fields(self) -> dict[str, Any]:
        """Return the entry."""
        entry: dict[str, Any] = json.loads(self.entry)
        return entry


def write_line(
    entry: Mapping[str, Any],
    *,
    index: int,
    at: str,
    previous: str,
    salt: bytes,
    key: Ed25519PrivateKey,
) -> tuple[bytes, Checkpoint]:
    """Return a line's bytes, and the checkpoint that signs it."""
    text = to_json(entry)
    leaf = leaf_of(commitments(salt, json.loads(text)))
    body = sha256(salt + text.encode())
    link = f'{{"at":"{at}","body":"{body}","index":{index},"leaf":"{leaf}","previous":"{previous}"'
    checkpoint = sign_checkpoint(key, index, sha256(link.encode() + b"}"), at)
    rest = f'"entry":{text},"salt":"{salt.hex()}","signature":"{checkpoint.signature}"'
    return f"{link},{rest}}}\n".encode(), checkpoint


def read_line(raw: bytes, number: int, previous: str) -> Line:
    """Parse line `number` and check that it follows from the head `previous`.

    Raises:
        IntegrityError: not a line of the chain, or not the one that follows.
    """
    found = _LINE.fullmatch(raw)
    if found is None:
        raise IntegrityError(f"audit line {number} was altered: it is no whole line of the chain")
    index = int(found["index"])
    head = sha256(found["link"] + b"}")
    at = found["at"].decode()
    signature = found["signature"].decode()
    line = Line(
        index=index,
        at=at,
        body=found["body"].decode(),
        leaf=found["leaf"].decode(),
        previous=found["previous"].decode(),
        entry=found["entry"],
        salt=bytes.fromhex(found["salt"].decode()),
        checkpoint=Checkpoint(length=index, head=head, at=at, signature=signature),
    )
    if index > number:
        raise IntegrityError(f"audit line {number} is entry {index}: {_missing(number, index - 1)}")
    if index < number:
        raise IntegrityError(f"audit line {number} is entry {index} again: repeated or moved")
    if line.previous != previous:
        raise IntegrityError(
            f"audit line {number} does not follow from line {number - 1}: one of the two is altered"
        )
    if sha256(line.salt + line.entry) != line.body:
        raise IntegrityError(_other_entry(number))
    return line


def check_line(line: Line, key: Ed25519PublicKey) -> None:
    """Check the rest of a line: its signature, and its entry against its leaf.

    Raises:
        IntegrityError: the line was altered, or was not signed with the audit key.
    """
    if not line.checkpoint.holds(key):
        raise IntegrityError(
            f"audit line {line.index} was altered: it is not what the audit key signed"
        )
    try:
        same = leaf_of(commitments(line.salt, line.fields())) == line.leaf
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise IntegrityError(_other_entry(line.index))


def _other_entry(number: int) -> str:
    return f"audit line {number} was altered: its entry is not the recorded one"


def _missing(first: int, last: int) -> str:
    entries = f"entry {first} is" if first == last else f"entries {first} to {last} are"
    return f"{entries} missing here (removed or moved)"
