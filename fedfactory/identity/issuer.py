"""The issuer: signs the consortium's members in the coordinator's own house, certified by a root.

All of it lies in one file, so that a rotation takes effect whole or not at all. Whoever can read
that file can make members: it is the owner's alone (0600).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, IdentityError, UsageError
from fedfactory.durable_file import write_durably
from fedfactory.identity.certificates import build_leaf, new_authority_key, pem_of, requested_key
from fedfactory.identity.chains import read_certificates, root_of
from fedfactory.identity.formats import check_format
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.root import Root
from fedfactory.identity.succession import follow

ISSUER_FILE: Final = "issuer.json"
FORMAT: Final = 1
MOST_CROSSES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerState:
    """What issuer.json holds, as PEM texts.

    `roots` are those that members trust, the newest first; the issuer's `certificate` is of the
    first. During a rotation there are two. `cross` holds the certificates of roots' keys by the
    roots before them, the newest first, so that who slept through a rotation can follow it.
    """

    format: int
    consortium: str
    key: str
    certificate: str
    cross: str | None
    roots: tuple[str, ...]


class Issuer:
    """Signs requests with the key in `folder`; what a rotation changes there counts at once.

    Raises:
        IdentityError: the folder holds no issuer, or a damaged one.
        UsageError: it is of another version's format.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ISSUER_FILE
        self._seen: tuple[int, int] | None = None
        self._load()

    @classmethod
    def create(cls, folder: Path, consortium: str, root: Root) -> Self:
        """Make an issuer that `root` certifies, in a new folder."""
        folder.mkdir(mode=0o700, parents=True)
        write_durably(folder / ISSUER_FILE, to_json(_new_state(consortium, root)))
        return cls(folder)

    @property
    def state(self) -> IssuerState:
        """What the file holds now."""
        self._load()
        return self._state

    @property
    def bundle_pem(self) -> bytes:
        """The roots that members are to trust, the newest first."""
        return "".join(self.state.roots).encode()

    @property
    def succession_pem(self) -> bytes:
        """What travels to members: those roots, and the cross certificates that lead to them."""
        return _succession(self.state)

    @property
    def shown_crosses(self) -> list[x509.Certificate]:
        """What the coordinator shows during a rotation: members may trust the old root alone."""
        state = self.state
        if len(state.roots) == 1 or not state.cross:
            return []
        return read_certificates(state.cross.encode())[:1]

    @property
    def certificate(self) -> x509.Certificate:
        """The issuer's own certificate."""
        self._load()
        return self._certificate

    @property
    def roots(self) -> list[x509.Certificate]:
        """The roots that members are to trust, the newest first."""
        return read_certificates(self.bundle_pem)

    def sign(
        self,
        request_pem: bytes,
        role: Role,
        name: str,
        lifetime: timedelta,
        *,
        hosts: Sequence[str] = (),
    ) -> bytes:
        """Return a certificate and its chain (PEM) for a request, with exactly `role` and `name`.

        What the request itself says of names is ignored. The certificate never outlives the issuer.

        Raises:
            IdentityError: a request without proof of its key or with a key on no NIST curve, a bad
                name, hosts for a role that serves nobody, or the issuer has itself ended.
        """
        return self.sign_key(requested_key(request_pem), role, name, lifetime, hosts=hosts)

    def sign_key(
        self,
        public_key: ec.EllipticCurvePublicKey,
        role: Role,
        name: str,
        lifetime: timedelta,
        *,
        hosts: Sequence[str] = (),
    ) -> bytes:
        """As `sign`, for a key whose possession was proven in another way."""
        crosses = self.shown_crosses if role is Role.COORDINATOR else []
        end = self._certificate.not_valid_after_utc
        if end <= datetime.now(UTC):
            raise IdentityError(
                f"the consortium's issuer ended on {end:%Y-%m-%d}: its lead has to run"
                " `fedfactory consortium rotate --issuer` with the root key"
            )
        peer = Peer(role=role, name=name)
        leaf = build_leaf(public_key, peer, self._certificate, self._key, lifetime, hosts=hosts)
        return pem_of([leaf, self._certificate, *crosses])

    # ---- the lead's, with a root key ------------------------------------------------------------

    def check_present_root(self, root: Root) -> None:
        """Raise IdentityError if `root` is not the one that the issuer rests on."""
        if root.certificate != self.roots[0]:
            raise IdentityError(
                "this is not the present root key of this consortium; `fedfactory consortium show`"
                " tells its fingerprint"
            )

    def check_single_root(self) -> None:
        """Raise IdentityError if a rotation is under way."""
        if len(self.state.roots) > 1:
            raise IdentityError(
                "a rotation is under way: end it with `fedfactory consortium rotate --finish` first"
            )

    def renew_issuer(self, root: Root) -> None:
        """Make a new issuer key under the present root.

        Raises:
            IdentityError: `root` is not the present root.
        """
        self.check_present_root(root)
        state = self.state
        fresh = _new_state(state.consortium, root)
        renewed = replace(state, key=fresh.key, certificate=fresh.certificate)
        self._save(renewed, trusted=self.roots)

    def rotate(self, old: Root, new: Root) -> None:
        """Begin an overlap: both roots are trusted, a new issuer under the new one signs.

        Raises:
            IdentityError: `old` is not the present root, or an overlap is not finished yet.
        """
        self.check_single_root()
        self.check_present_root(old)
        state = self.state
        fresh = _new_state(state.consortium, new)
        before = read_certificates(state.cross.encode()) if state.cross else []
        crosses = [old.certify_root(new.certificate), *before][:MOST_CROSSES]
        begun = replace(fresh, cross=pem_of(crosses).decode(), roots=(*fresh.roots, *state.roots))
        self._save(begun, trusted=self.roots)

    def finish_rotation(self) -> None:
        """Drop the old root.

        Raises:
            IdentityError: no rotation is under way, or who trusts the old root alone could not
                follow: its certificate of the new root's key is missing or does not hold.
        """
        state, roots = self.state, self.roots
        if len(state.roots) == 1:
            raise IdentityError("no rotation is under way: there is one root")
        has_ended = roots[-1].not_valid_after_utc < datetime.now(UTC)
        trusted = roots[:1] if has_ended else roots[-1:]
        self._save(replace(state, roots=state.roots[:1]), trusted=trusted)

    def _save(self, state: IssuerState, *, trusted: Sequence[x509.Certificate]) -> None:
        """Write a state that members who trust `trusted` take: they are asked before it counts."""
        now = datetime.now(UTC)
        roots = follow(trusted, _succession(state), now)
        root_of(read_certificates(state.certificate.encode()), roots[:1], now)
        write_durably(self._path, to_json(state))
        self._load()

    def _load(self) -> None:
        try:
            found = self._path.stat()
            # A replaced file is another inode: what another process rotated counts here at once.
            if self._seen == (found.st_ino, found.st_mtime_ns):
                return
            text = self._path.read_bytes()
            check_format(self._path, text, FORMAT)
            state = from_json(IssuerState, text)
            key = serialization.load_pem_private_key(state.key.encode(), password=None)
            certificate = read_certificates(state.certificate.encode())[0]
        except UsageError:
            raise
        except (OSError, ValueError, FedfactoryError) as error:
            raise IdentityError(f"{self._path} holds no issuer", diagnostic=str(error)) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityError(f"{self._path} holds a key on no NIST curve")
        self._state, self._key, self._certificate = state, key, certificate
        self._seen = (found.st_ino, found.st_mtime_ns)


def _succession(state: IssuerState) -> bytes:
    return "".join((*state.roots, state.cross or "")).encode()


def _new_state(consortium: str, root: Root) -> IssuerState:
    key = new_authority_key()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificate = root.certify_issuer(key.public_key(), consortium)
    return IssuerState(
        format=FORMAT,
        consortium=consortium,
        key=private.decode(),
        certificate=pem_of([certificate]).decode(),
        cross=None,
        roots=(pem_of([root.certificate]).decode(),),
    )
