"""New roots are trusted by their cross certificates alone, each checked whole; hostile bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fedfactory.contracts.errors import IdentityError
from fedfactory.identity.certificates import build_issuer, pem_of
from fedfactory.identity.root import Root
from fedfactory.identity.succession import MAX_BUNDLE_BYTES, follow

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
ROOTS = [Root.new("alliance") for _ in range(4)]
CERTIFICATES = [root.certificate for root in ROOTS]
# CROSSES[i]: of root i + 1's key by root i
CROSSES = [old.certify_root(new.certificate) for old, new in pairwise(ROOTS)]
R1, R2, R3, _ = CERTIFICATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Forged:
    """A certificate of whatever is asked for; the defaults make an honest cross certificate."""

    subject: x509.Name = R2.subject
    issuer: x509.Name = R1.subject
    key: object = None
    by: object = None
    begin: datetime = NOW - DAY
    end: datetime = NOW + DAY
    ca: bool = True
    path_length: int | None = 2
    signs: bool = True
    constrained: bool = True
    extra: x509.ExtensionType | None = None

    def made(self) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(self.issuer)
            .public_key(self.key or R2.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.begin)
            .not_valid_after(self.end)
        )
        if self.constrained:
            length = self.path_length if self.ca else None
            builder = builder.add_extension(
                x509.BasicConstraints(ca=self.ca, path_length=length), critical=True
            )
            usage = x509.KeyUsage(
                not self.signs, False, False, False, False, self.signs, self.signs, False, False
            )
            builder = builder.add_extension(usage, critical=True)
        if self.extra is not None:
            builder = builder.add_extension(self.extra, critical=True)
        return builder.sign(self.by or ROOTS[0]._key, hashes.SHA384())


def followed(
    trusted: Sequence[x509.Certificate], *bundle: x509.Certificate
) -> list[x509.Certificate]:
    return list(follow(trusted, pem_of(bundle), NOW))


def refused(trusted: Sequence[x509.Certificate], *bundle: x509.Certificate, said: str) -> None:
    with pytest.raises(IdentityError, match=said):
        followed(trusted, *bundle)


def test_the_same_roots_and_every_step_of_a_rotation() -> None:
    assert followed([R1], R1) == [R1]
    assert followed([R1], R2, R1, CROSSES[0]) == [R2, R1]
    assert followed([R2, R1], R2, R1, CROSSES[0]) == [R2, R1]
    assert followed([R2, R1], R2, CROSSES[0]) == [R2]
    assert followed([R2], R2, CROSSES[0]) == [R2]


def test_who_slept_through_rotations_follows_all_of_them() -> None:
    assert followed([R1], R3, R2, CROSSES[1], CROSSES[0]) == [R3, R2]
    assert followed([R1], R3, CROSSES[1], CROSSES[0]) == [R3]  # the second root is gone by now
    assert followed([R1], R3, CROSSES[0], CROSSES[1]) == [R3]  # in any order
    assert followed([R1], CERTIFICATES[3], *CROSSES) == [CERTIFICATES[3]]
    refused([R1], R3, CROSSES[1], said="no certificate of its key")  # a link is missing
    refused([R1], CERTIFICATES[3], CROSSES[0], CROSSES[2], said="no certificate of its key")


@given(st.sets(st.integers(0, 3), min_size=1), st.sets(st.integers(0, 2)), st.integers(0, 3))
@pytest.mark.rule("38")
def test_only_what_trusted_keys_certified_is_ever_trusted(
    roots: set[int], crosses: set[int], at: int
) -> None:
    bundle = [
        *(CERTIFICATES[i] for i in sorted(roots, reverse=True)),
        *(CROSSES[i] for i in crosses),
    ]
    reached = at
    while reached in crosses:
        reached += 1
    allowed = all(at <= root <= reached for root in roots)
    if allowed:
        assert followed([CERTIFICATES[at]], *bundle) == bundle[: len(roots)]
    else:
        with pytest.raises(IdentityError):
            followed([CERTIFICATES[at]], *bundle)


def test_a_root_beside_a_trusted_one_is_not_trusted_for_it() -> None:
    """What renewal took before: any new root, if one old one was in the bundle."""
    refused([R1], R2, R1, said="is new, and no certificate of its key")
    refused([R1], R3, R2, R1, CROSSES[0], said="is new, and no certificate of its key")
    refused([R1], R2, said="is new")  # a dropped root, and nothing that leads on


def test_the_newest_root_is_not_taken_back() -> None:
    refused([R2, R1], R1, CROSSES[0], said="never taken back")
    refused([R2], R1, CROSSES[0], said="is new")


ISSUER_KEY = ec.generate_private_key(ec.SECP384R1())
ISSUER = build_issuer(ISSUER_KEY.public_key(), "alliance", R1, ROOTS[0]._key)


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        (Forged(key=R3.public_key()), "no certificate of its key"),
        (Forged(subject=R3.subject), "no certificate of its key"),
        (Forged(by=ROOTS[2]._key), "not signed by the key that it names"),
        (Forged(issuer=R3.subject, by=ROOTS[2]._key), "no certificate of its key"),
        (Forged(issuer=ISSUER.subject, by=ISSUER_KEY), "no certificate of its key"),
        (Forged(by=ROOTS[1]._key), "not signed by the key that it names"),
        (Forged(end=NOW - timedelta(hours=1)), "not now"),
        (Forged(begin=NOW + timedelta(hours=1)), "not now"),
        (Forged(ca=False), "is not an authority's"),
        (Forged(signs=False), "is not an authority's"),
        (Forged(constrained=False), "does not say that it is an authority's"),
        (Forged(path_length=0), "allows 0 authorities below it: expected 1"),
        (Forged(extra=x509.NameConstraints([x509.DNSName("a.org")], None)), "critical extension"),
    ],
)
def test_a_cross_certificate_is_checked_whole(forged: Forged, said: str) -> None:
    assert followed([R1], R2, R1, Forged().made()) == [R2, R1]
    assert followed([R1], R2, R1, Forged(path_length=1).made()) == [R2, R1]  # of older versions
    refused([R1], R2, R1, forged.made(), said=said)
    # The issuer's own certificate beside it makes its holder no root.
    refused([R1], R2, R1, ISSUER, forged.made(), said="no certificate of its key")


def test_a_self_issued_certificate_leads_nowhere() -> None:
    """Its subject and issuer are one name: a root of nobody's, or no root."""
    own = Forged(issuer=R2.subject, by=ROOTS[1]._key).made()
    refused([R1], own, R1, said="is new")
    refused([R1], R2, own, R1, said="is new")
    rekeyed = Forged(subject=R1.subject, key=R2.public_key()).made()
    refused([R1], rekeyed, R1, said="not signed by the key that it names")


def test_a_trusted_root_must_itself_be_one_that_may_certify_roots() -> None:
    shallow = Forged(subject=R1.subject, key=R1.public_key(), path_length=1).made()
    refused([shallow], shallow, R2, CROSSES[0], said="allows 1 authorities below it: expected 2")
    past = Forged(subject=R1.subject, key=R1.public_key(), end=NOW - timedelta(hours=1)).made()
    refused([past], R2, CROSSES[0], said="not now")
    refused([past], past, said="not now")


def test_roots_of_a_bundle_are_roots() -> None:
    leaf = Forged(subject=R1.subject, key=R1.public_key(), ca=False).made()
    refused([leaf], leaf, said="is not an authority's")
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "r")])
    other = Forged(subject=name, issuer=name, key=key.public_key(), by=key).made()
    refused([other], other, said="no NIST curve")
    refused([R1], CROSSES[0], said="holds no root")
    refused([R1], said="no certificates")


def test_huge_bundles_are_not_read() -> None:
    with pytest.raises(IdentityError, match="at most 65536"):
        follow([R1], b" " * MAX_BUNDLE_BYTES + pem_of([R1]), NOW)
    refused([R1], R1, *([CROSSES[0]] * 16), said="holds 17 certificates")
    assert followed([R1], R1, *([CROSSES[0]] * 15)) == [R1]
