"""Check an export of a site's audit chain. Use: python verify_audit.py EXPORT.jsonl audit.pub."""

import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_public_key


def _text(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"FAILED: {otherwise}")


sys.excepthook = lambda kind, error, _: sys.stderr.write(f"FAILED: {kind.__name__} {error}\n")
key = load_pem_public_key(Path(sys.argv[2]).read_bytes())
*lines, end = map(json.loads, raw := Path(sys.argv[1]).read_bytes().splitlines(keepends=True))
first, n = lines[0]["index"], end["length"]
head = _sha(key.public_bytes_raw()) if first == 1 else lines[0]["previous"]
for i, line in enumerate(lines, first):
    _must((line["index"], line["previous"]) == (i, head), f"entry {i} does not follow")
    head = _sha(_text({k: line[k] for k in ("at", "body", "index", "leaf", "previous")}))
    if (show := line["fields"]) is not None:
        made = {k: _sha(bytes.fromhex(f["salt"]) + _text([k, f["value"]])) for k, f in show.items()}
        _must(_sha(_text(line["withheld"] | made)) == line["leaf"], f"entry {i} was altered")
_must((first + len(lines) - 1, head) == (n, end["head"]), f"the last entry is not {n}")
_must(end["lines"] == _sha(b"".join(raw[:-1])), "the lines are not those that were signed")
signed = f"fedfactory audit export\n{end['lines']}\n{n}\n{head}\n{end['at']}\n"
key.verify(base64.b64decode(end["signature"]), signed.encode())  # raises InvalidSignature
sys.stdout.write(f"holds: entries {first} to {n} as of {end['at']}, head {head}\n")
