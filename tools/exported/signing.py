"""Signatures of exports: HMAC-SHA256 by a secret that both sides have, or Ed25519 by a key that devices do not have."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings

from refdiff.model.errors import InputError, TamperedError, UnavailableError
from refdiff.model.settings import ENVIRONMENT

if TYPE_CHECKING:  # a package that only those need who have such a key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

HMAC, ED25519 = "hmac-sha256", "ed25519"
_NAMES = {HMAC: "REFDIFF_EXPORT_KEY", ED25519: "REFDIFF_EXPORT_PUBLIC_KEY"}


class Signature(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Literal["none", "hmac-sha256", "ed25519"]
    value: str  # hex, of the manifest as it is in the file


@dataclass(frozen=True)
class Keys:
    """What signs exports and what they are checked by; PEM files as bytes. Without any, nothing is signed or checked."""

    secret: bytes | None = None
    private: bytes | None = None
    public: bytes | None = None

    @property
    def signs(self) -> bool:
        """Whether it can sign; a public key only checks."""
        return self.private is not None or self.secret is not None

    def sign(self, manifest: bytes) -> Signature:
        """By the private key if there is one, else by the secret. Raises as `ready`."""
        if self.private is not None:
            return Signature(algorithm="ed25519", value=_private(self.private).sign(manifest).hex())
        if self.secret is not None:
            return Signature(algorithm="hmac-sha256", value=_hmac(self.secret, manifest))
        return Signature(algorithm="none", value="")

    def ready(self) -> None:
        """Raises what is wrong with the keys themselves: InputError for what is no key, UnavailableError where the package
        that checks by them is not installed."""
        if self.public is not None:
            _public(self.public)
        elif self.private is not None:
            _private(self.private)

    def check(self, file: str, manifest: bytes, signature: Signature) -> bool:
        """Whether a signature was checked: there is a key. file: what errors call it.

        Raises TamperedError where it is not by one of the keys, and as `ready`.
        """
        known = {HMAC: self.secret, ED25519: self.public or self.private}
        named = " or ".join(_NAMES[name] for name, key in known.items() if key is not None)
        if not named:
            return False
        if signature.algorithm == "none":
            raise TamperedError(f"{file}: is not signed, and {named} asks for a signature; export it again, signed")
        if known[signature.algorithm] is None:
            raise TamperedError(
                f"{file}: is signed by {signature.algorithm}, which {named} cannot check; set {_NAMES[signature.algorithm]}"
            )
        if not (self._is_hmac if signature.algorithm == HMAC else self._is_ed25519)(manifest, signature.value):
            raise TamperedError(
                f"{file}: is not signed by the key in {_NAMES[signature.algorithm]}; use the one it was exported with"
            )
        return True

    def _is_hmac(self, manifest: bytes, value: str) -> bool:
        assert self.secret is not None
        return hmac.compare_digest(value.encode(), _hmac(self.secret, manifest).encode())

    def _is_ed25519(self, manifest: bytes, value: str) -> bool:
        key = _public(self.public) if self.public is not None else _private(self.private or b"").public_key()
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(bytes.fromhex(value), manifest)
        except (InvalidSignature, ValueError):
            return False
        return True


NO_KEYS = Keys()


class ExportSettings(BaseSettings):
    """Explicit argument > environment > default."""

    model_config = ENVIRONMENT

    export_key: SecretStr | None = Field(
        default=None, min_length=16, description="Secret that signs exports and that devices check them by."
    )
    export_private_key: Path | None = Field(
        default=None, description="File (PEM) of the Ed25519 key that signs exports, instead of the secret."
    )
    export_public_key: Path | None = Field(
        default=None, description="File (PEM) of the public Ed25519 key that exports are checked by."
    )

    @classmethod
    def read(cls) -> Self:
        """From the environment. Raises InputError, without the secret in it."""
        try:
            return cls()
        except ValidationError:  # its own message shows the value
            raise InputError(
                "REFDIFF_EXPORT_KEY: is too short; 16 characters or more, such as of: openssl rand -base64 32"
            ) from None

    @property
    def keys(self) -> Keys:
        """Raises InputError for a file that cannot be read."""
        secret = None if self.export_key is None else self.export_key.get_secret_value().encode()
        return Keys(secret, _read(self.export_private_key, "PRIVATE"), _read(self.export_public_key, "PUBLIC"))


def _read(path: Path | None, which: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.expanduser().read_bytes()
    except OSError as e:
        raise InputError(f"REFDIFF_EXPORT_{which}_KEY: {path} cannot be read ({e.strerror})") from e


def _hmac(secret: bytes, manifest: bytes) -> str:
    return hmac.new(secret, manifest, hashlib.sha256).hexdigest()


def _private(pem: bytes) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as e:
        raise _missing() from e
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as e:  # the second where it has a password
        raise InputError(
            f"REFDIFF_EXPORT_PRIVATE_KEY: no key without a password ({e}); make one: "
            "openssl genpkey -algorithm ed25519 -out private.pem"
        ) from e
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("REFDIFF_EXPORT_PRIVATE_KEY: is no Ed25519 key; openssl genpkey -algorithm ed25519 makes one")
    return key


def _public(pem: bytes) -> Ed25519PublicKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as e:
        raise _missing() from e
    try:
        key = load_pem_public_key(pem)
    except ValueError as e:
        raise InputError(
            f"REFDIFF_EXPORT_PUBLIC_KEY: no public key ({e}); write it of the private one: "
            "openssl pkey -in private.pem -pubout -out public.pem"
        ) from e
    if not isinstance(key, Ed25519PublicKey):
        raise InputError("REFDIFF_EXPORT_PUBLIC_KEY: is no Ed25519 key; use the one of the key that signs exports")
    return key


def _missing() -> UnavailableError:
    return UnavailableError(
        "Ed25519 keys need the package cryptography: pip install 'refdiff-edge[ed25519]' on a device, "
        "'refdiff[ed25519]' elsewhere"
    )
