"""Token ids packed as little-endian u32, one after another: in contracts and under block hashes.

What a prompt's ids go through between tokenizer and engine is copied as bytes, so that its length hardly matters.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

TOKEN_BYTES = 4


def pack_token_ids(token_ids: Sequence[int]) -> bytes:
    """The ids' bytes; OverflowError for an id that is no u32."""
    return _turned(array("I", token_ids)).tobytes()


def unpack_token_ids(packed: bytes) -> array[int]:
    """The ids in `packed`; ValueError when its length is not a multiple of 4."""
    token_ids = array("I")
    token_ids.frombytes(packed)
    return _turned(token_ids)


def _turned(token_ids: array[int]) -> array[int]:
    """From this machine's byte order to the contract's, or back; may change the argument."""
    if token_ids.itemsize != TOKEN_BYTES:  # pragma: no cover - no platform that we run on
        raise RuntimeError("this platform has no 4-byte unsigned int")
    if sys.byteorder == "big":  # pragma: no cover
        token_ids.byteswap()
    return token_ids
