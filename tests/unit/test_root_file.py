"""The root key's file: what guards the passphrase, old files rewritten, hostile and damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from fedfactory.contracts.errors import EnvironmentFailedError, UsageError
from fedfactory.identity import root as root_module
from fedfactory.identity import sealing
from fedfactory.identity.certificates import pem_of
from fedfactory.identity.passphrases import check_passphrase, generate_passphrase
from fedfactory.identity.root import Root

PASSPHRASE = b"correct horse battery"
OLD_PASSPHRASE = b"short 8!"  # what older versions took


def old_file(path: Path, passphrase: bytes = OLD_PASSPHRASE) -> Root:
    """Write a root's file as older versions did."""
    root = Root.new("alliance")
    key = root._key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )
    path.write_bytes(key + pem_of([root.certificate]))
    path.chmod(0o600)
    return root


def test_a_new_file_takes_scrypts_cost(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    Root.new("alliance").save(path, PASSPHRASE)
    told = json.loads(path.read_bytes())
    assert told["format"] == 2
    assert {key: told["key"][key] for key in ("scrypt_n", "scrypt_r", "scrypt_p")} == {
        "scrypt_n": 2**17,
        "scrypt_r": 8,
        "scrypt_p": 1,
    }
    other = tmp_path / "other.key"
    Root.open(path, PASSPHRASE).save(other, PASSPHRASE)
    again = json.loads(other.read_bytes())["key"]
    assert all(again[key] != told["key"][key] for key in ("salt", "nonce", "sealed"))


def test_an_old_file_is_read_and_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    root = old_file(path)
    opened = Root.open(path, OLD_PASSPHRASE)
    assert (opened.certificate, opened._key.private_numbers()) == (
        root.certificate,
        root._key.private_numbers(),
    )
    assert "was rewritten" in opened.note
    content = path.read_bytes()
    assert json.loads(content)["format"] == 2
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["root.key"]
    again = Root.open(path, OLD_PASSPHRASE)
    assert (again.certificate, again.note) == (root.certificate, "")
    assert path.read_bytes() == content


def test_a_file_of_a_lower_cost_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "root.key"
    monkeypatch.setattr(sealing, "SCRYPT_N", 2**14)
    Root.new("alliance").save(path, PASSPHRASE)
    monkeypatch.undo()
    assert "was rewritten" in Root.open(path, PASSPHRASE).note
    assert json.loads(path.read_bytes())["key"]["scrypt_n"] == 2**17


def test_a_wrong_passphrase_rewrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    old_file(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="another passphrase"):
        Root.open(path, b"not that one")
    assert path.read_bytes() == before


def test_where_it_cannot_be_rewritten_it_still_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "root.key"
    root = old_file(path)
    before = path.read_bytes()

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(root_module, "write_durably", read_only)
    opened = Root.open(path, OLD_PASSPHRASE)
    assert opened.certificate == root.certificate
    assert "cannot be rewritten (Read-only file system)" in opened.note
    assert path.read_bytes() == before


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "stick" / "root.key", tmp_path / "root.key"
    real.parent.mkdir()
    old_file(real)
    link.symlink_to(real)
    Root.open(link, OLD_PASSPHRASE)
    assert link.is_symlink()
    assert json.loads(real.read_bytes())["format"] == 2


@pytest.mark.parametrize("step", ["mkstemp", "fsync", "replace"])
def test_killed_while_it_rewrites_the_key_is_still_there(tmp_path: Path, step: str) -> None:
    """kill -9 at every step of the rewriting: the old file or the new one, never half of one."""
    path = tmp_path / "root.key"
    root = old_file(path)
    program = textwrap.dedent(
        """
        import os, signal, sys, tempfile
        from pathlib import Path
        from fedfactory.identity.root import Root
        path, step = Path(sys.argv[1]), sys.argv[2]
        owner = {"mkstemp": tempfile, "fsync": os, "replace": Path}[step]
        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(owner, step, die)
        Root.open(path, b"short 8!")
        """
    )
    words = [sys.executable, "-c", program, str(path), step]
    assert subprocess.run(words, check=False, timeout=60).returncode == -9
    assert Root.open(path, OLD_PASSPHRASE).certificate == root.certificate


# ---- hostile files -------------------------------------------------------------------------------


def altered(path: Path, change: dict[str, Any], key: dict[str, Any]) -> None:
    told = json.loads(path.read_bytes())
    path.write_text(json.dumps({**told, **change, "key": {**told["key"], **key}}))


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({}, {"scrypt_n": 2**30}, "no encrypted root key"),
        ({}, {"scrypt_n": 10**400}, "no encrypted root key"),
        ({}, {"scrypt_n": 2**17 + 1}, "no encrypted root key"),
        ({}, {"scrypt_n": 0}, "no encrypted root key"),
        ({}, {"scrypt_n": True}, "no encrypted root key"),
        ({}, {"scrypt_r": 2**20}, "no encrypted root key"),
        ({}, {"scrypt_p": 2**20}, "no encrypted root key"),
        ({}, {"salt": "AAAA"}, "no encrypted root key"),
        ({}, {"salt": "not base64"}, "no encrypted root key"),
        ({}, {"nonce": ""}, "no encrypted root key"),
        ({}, {"sealed": "A" * 8000}, "no encrypted root key"),
        ({}, {"sealed": "AAAA"}, "another passphrase, or a damaged file"),
        ({}, {"more": 1}, "no encrypted root key"),
        ({"format": 3}, {}, "has format 3"),
        ({"certificate": "none"}, {}, "another passphrase, or a damaged file"),
    ],
)
def test_a_hostile_file_is_refused_before_it_costs_anything(
    tmp_path: Path, change: dict[str, Any], key: dict[str, Any], said: str
) -> None:
    path = tmp_path / "root.key"
    Root.new("alliance").save(path, PASSPHRASE)
    altered(path, change, key)
    began = time.process_time()
    with pytest.raises(UsageError, match=said):
        Root.open(path, PASSPHRASE)
    assert time.process_time() - began < 5


def test_a_key_beside_another_certificate_does_not_open(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    Root.new("alliance").save(path, PASSPHRASE)
    other = pem_of([Root.new("alliance").certificate]).decode()
    altered(path, {"certificate": other}, {})
    with pytest.raises(UsageError, match="damaged"):
        Root.open(path, PASSPHRASE)


def test_too_little_memory_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "root.key"
    Root.new("alliance").save(path, PASSPHRASE)

    class Full:
        def __init__(self, **_: object) -> None: ...

        def derive(self, _: bytes) -> bytes:
            raise MemoryError

    monkeypatch.setattr(sealing, "Scrypt", Full)
    with pytest.raises(EnvironmentFailedError, match="128 MiB of memory"):
        Root.open(path, PASSPHRASE)


def der_of(path: Path) -> bytes:
    return serialization_der(path.read_bytes())


def serialization_der(pem: bytes) -> bytes:
    import base64

    body = pem.split(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")[1].split(b"-----END")[0]
    return base64.b64decode(b"".join(body.split()))


def pem_around(der: bytes) -> bytes:
    import base64

    return (
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
        + base64.encodebytes(der)
        + b"-----END ENCRYPTED PRIVATE KEY-----\n"
    )


@pytest.mark.parametrize(
    "rounds", [b"\x02\x04\x7f\xff\xff\xff", b"\x02\x02\x80\x00", b"\x02\x01\x00"]
)
def test_an_old_files_rounds_are_bounded(tmp_path: Path, rounds: bytes) -> None:
    path = tmp_path / "root.key"
    root = old_file(path)
    der = der_of(path)
    assert der.count(b"\x02\x02\x08\x00") == 1  # 2,048 rounds
    path.write_bytes(
        pem_around(der.replace(b"\x02\x02\x08\x00", rounds)) + pem_of([root.certificate])
    )
    began = time.process_time()
    with pytest.raises(UsageError, match="no encrypted root key"):
        Root.open(path, OLD_PASSPHRASE)
    assert time.process_time() - began < 1


@pytest.mark.skipif(not Path("/usr/bin/openssl").exists(), reason="there is no openssl")
def test_another_function_in_an_old_file_is_refused_and_more_rounds_are_not(tmp_path: Path) -> None:
    root = old_file(tmp_path / "root.key")
    plain = tmp_path / "plain.pem"
    plain.write_bytes(
        root._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    for words, opens in ((("-scrypt",), False), (("-iter", "600000"), True)):
        path = tmp_path / f"{opens}.key"
        subprocess.run(
            [
                *("openssl", "pkcs8", "-topk8", "-in", str(plain), "-out", str(path)),
                *("-passout", f"pass:{OLD_PASSPHRASE.decode()}", *words),
            ],
            check=True,
            timeout=60,
            env=os.environ,
        )
        path.write_bytes(path.read_bytes() + pem_of([root.certificate]))
        if opens:
            assert "was rewritten" in Root.open(path, OLD_PASSPHRASE).note
        else:
            with pytest.raises(UsageError, match="no encrypted root key"):
                Root.open(path, OLD_PASSPHRASE)


# ---- passphrases ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "passphrase", [b"", b"eleven char", b"a" * 40, "ünïcödé1234".encode(), b"ababababababab"]
)
def test_a_weak_passphrase_makes_no_file(tmp_path: Path, passphrase: bytes) -> None:
    with pytest.raises(UsageError, match="12 characters"):
        Root.new("alliance").save(tmp_path / "root.key", passphrase)
    assert list(tmp_path.iterdir()) == []


def test_generated_passphrases_are_strong_and_typable() -> None:
    made = {generate_passphrase() for _ in range(100)}
    assert len(made) == 100
    for one in made:
        check_passphrase(one.encode())
        assert len(one.replace("-", "")) == 24  # of 32 letters: 120 bits
        assert not set(one) & set("l1o0 ")
