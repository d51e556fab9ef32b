import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_common.hashing import (
    block_hash,
    block_hashes,
    namespace_root,
    pack_hashes,
    tenant_salt,
    unpack_hashes,
)

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=60)


@given(tokens, st.integers(1, 9))
def test_bulk_hashing_equals_hashing_block_by_block(token_ids: list[int], block_size: int) -> None:
    parent = root = namespace_root("m")
    expected = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[start : start + block_size])
        expected.append(parent)
    assert block_hashes(root, token_ids, block_size) == expected
    assert unpack_hashes(pack_hashes(expected)) == expected


@given(tokens, tokens)
def test_a_hash_names_everything_before_it(first: list[int], second: list[int]) -> None:
    root = namespace_root("m")
    one, other = block_hashes(root, first, 4), block_hashes(root, second, 4)
    shared = sum(a == b for a, b in zip(one, other, strict=False))
    same = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    assert shared == min(same // 4, len(one), len(other))


@given(st.tuples(st.text(), st.text(), st.binary()), st.tuples(st.text(), st.text(), st.binary()))
def test_namespaces_are_equal_only_when_every_field_is(
    a: tuple[str, str, bytes], b: tuple[str, str, bytes]
) -> None:
    roots = [
        namespace_root(revision, adapter=adapter, tenant_salt=salt) for revision, adapter, salt in (a, b)
    ]
    assert (roots[0] == roots[1]) == (a == b)


def test_fields_cannot_run_together() -> None:
    assert namespace_root("a", adapter="bc") != namespace_root("ab", adapter="c")


def test_the_format_does_not_change_by_accident() -> None:
    root = namespace_root("revision", adapter="adapter", tenant_salt=tenant_salt(b"secret", "tenant"))
    assert root.hex() == GOLDEN_ROOT
    assert block_hash(root, [1, 2, 3]).hex() == GOLDEN_BLOCK


def test_packed_hashes_must_be_whole() -> None:
    with pytest.raises(ValueError, match="17 bytes"):
        unpack_hashes(b"x" * 17)


GOLDEN_ROOT = "cb9d2063a2e0b643ea2842d8d45777e4"
GOLDEN_BLOCK = "56b1635ae12bda824652c7766ba8d1bc"
