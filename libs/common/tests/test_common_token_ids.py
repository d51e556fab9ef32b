"""Packed token ids: every u32 comes back, and nothing else is taken."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_common.token_ids import pack_token_ids, unpack_token_ids


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_ids_come_back_and_are_little_endian(token_ids):
    packed = pack_token_ids(token_ids)
    assert packed == struct.pack(f"<{len(token_ids)}I", *token_ids)
    assert unpack_token_ids(packed).tolist() == token_ids
    assert pack_token_ids(unpack_token_ids(packed)) == packed


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_what_is_no_u32_is_not_packed(token_id):
    with pytest.raises(OverflowError):
        pack_token_ids([1, token_id])


def test_a_part_of_an_id_is_refused():
    with pytest.raises(ValueError, match="multiple"):
        unpack_token_ids(bytes(7))
