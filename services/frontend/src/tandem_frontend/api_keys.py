"""API keys: who may ask, and which tenant they are. Only digests of keys are ever stored."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from tandem_common.config import ConfigError
from tandem_common.errors import Unauthenticated

# Who everybody is when no keys are configured.
PUBLIC_TENANT = "public"
MAX_KEY_CHARACTERS = 512
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ApiKeys:
    """Tenants by the SHA-256 digest of their keys; without any, everybody may ask."""

    def __init__(self, tenants: Mapping[bytes, str]) -> None:
        self._tenants = dict(tenants)

    @classmethod
    def from_file(cls, path: str) -> ApiKeys:
        """Read lines of `DIGEST TENANT`, blank lines and # comments aside; ConfigError names the line."""
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"api_keys_file = {path!r} cannot be read") from None
        tenants = {}
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or not _DIGEST.fullmatch(words[0].lower()) or not _TENANT.fullmatch(words[1]):
                raise ConfigError(
                    f"api_keys_file: line {number} must hold the SHA-256 of a key in hex and a tenant of 1 to 64 "
                    "letters, digits, '.', '_' or '-' (printf %s KEY | sha256sum)"
                )
            tenants[bytes.fromhex(words[0])] = words[1]
        if not tenants:
            raise ConfigError(f"api_keys_file = {path!r} holds no keys; leave it unset to serve everybody")
        return cls(tenants)

    @property
    def required(self) -> bool:
        """Whether a key is needed."""
        return bool(self._tenants)

    def tenant(self, authorization: str | None) -> str:
        """Tenant of an `Authorization` value (`Bearer KEY`); Unauthenticated without a valid key."""
        if not self._tenants:
            return PUBLIC_TENANT
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("an API key is needed: send the header `Authorization: Bearer KEY`")
        if len(key) > MAX_KEY_CHARACTERS:
            raise Unauthenticated("the API key is not valid")
        digest = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, tenant in self._tenants.items():  # all of them, in constant time
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise Unauthenticated("the API key is not valid")
        return found
