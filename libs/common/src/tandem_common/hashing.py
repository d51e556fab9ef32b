"""Block hashes: one function for the frontend, the router's index and the engines' prefix caches.

A block hash names a block *and everything before it*: keyed BLAKE2b-128 over the parent's digest and the
block's token ids as little-endian u32. The first block's parent is the root, a digest of the namespace.
Only full blocks have a hash. The tenant's salt in the root is an HMAC under the cluster secret, so nobody
outside can compute the hashes of a guessed prompt.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256

from tandem_common.token_ids import TOKEN_BYTES, pack_token_ids

HASH_BYTES = 16
# Domain separation: a block hash can never equal a namespace root or another use of BLAKE2b.
_BLOCK_KEY = b"tandem block v1"
_ROOT_KEY = b"tandem root v1"


def namespace_root(model_revision: str, *, adapter: str = "", tenant_salt: bytes = b"") -> bytes:
    """Digest (16 bytes) that the first block of a sequence takes as its parent.

    Every field is preceded by its length, so that no two namespaces run together.
    """
    digest = blake2b(digest_size=HASH_BYTES, key=_ROOT_KEY)
    for field in (model_revision.encode(), adapter.encode(), tenant_salt):
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.digest()


def tenant_salt(cluster_secret: bytes, tenant: str) -> bytes:
    """Salt (32 bytes) that keeps the cached blocks of two tenants apart."""
    return hmac.new(cluster_secret, b"tenant salt\0" + tenant.encode(), sha256).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash (16 bytes) of one full block after `parent` (a block hash or a root)."""
    digest = blake2b(parent, digest_size=HASH_BYTES, key=_BLOCK_KEY)
    digest.update(pack_token_ids(token_ids))
    return digest.digest()


def block_hashes(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Hashes of all full blocks of a sequence, in order; an incomplete last block has none."""
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    packed = memoryview(pack_token_ids(token_ids))
    stride = TOKEN_BYTES * block_size
    hashes = []
    parent = root
    for start in range(0, len(packed) - stride + 1, stride):
        digest = blake2b(parent, digest_size=HASH_BYTES, key=_BLOCK_KEY)
        digest.update(packed[start : start + stride])
        parent = digest.digest()
        hashes.append(parent)
    return hashes


def pack_hashes(hashes: Iterable[bytes]) -> bytes:
    """Hashes one after another, as the contracts carry them."""
    return b"".join(hashes)


def unpack_hashes(packed: bytes) -> list[bytes]:
    """The hashes in `packed`; ValueError when its length is not a multiple of 16."""
    if len(packed) % HASH_BYTES:
        raise ValueError(f"{len(packed)} bytes are not a whole number of {HASH_BYTES}-byte hashes")
    return [packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES)]
