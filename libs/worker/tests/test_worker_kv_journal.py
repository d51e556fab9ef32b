from hypothesis import given
from hypothesis import strategies as st
from tandem_common.hashing import unpack_hashes
from tandem_worker.kv_journal import KvChange, KvJournal

HASHES = [bytes([number]) * 16 for number in range(12)]
hashes = st.lists(st.sampled_from(HASHES), unique=True, max_size=6)


def apply(held: set[bytes], change: KvChange) -> set[bytes]:
    """What a follower does with an entry."""
    message = change.to_proto(epoch=1)
    kept = set() if message.cleared else held - set(unpack_hashes(message.removed))
    return kept | set(unpack_hashes(message.stored))


@given(
    st.lists(
        st.tuples(hashes, hashes, st.sampled_from(["wait", "publish", "fail", "fail after", "lose"])),
        max_size=20,
    ),
    st.integers(1, 20),
)
def test_a_follower_ends_with_what_is_held_whatever_happened_to_redis(
    steps: list[tuple[list[bytes], list[bytes], str]], max_pending: int
) -> None:
    journal = KvJournal(max_pending)
    truth: set[bytes] = set()
    follower: set[bytes] = {b"x" * 16}  # of an earlier incarnation
    for removed, stored, event in steps:
        journal.record(removed, stored)
        truth = (truth - set(removed)) | set(stored)
        if event == "wait":
            continue
        change = journal.take()
        match event:
            case "publish":
                follower = apply(follower, change)
            case "fail":
                journal.put_back(change)
            case "fail after":  # the entry arrived, its answer did not
                follower = apply(follower, change)
                journal.put_back(change)
            case "lose":
                follower = set()
                journal.retell()
    follower = apply(follower, journal.take())
    assert follower == truth == set(journal.held)


def test_the_first_change_clears_what_an_earlier_incarnation_said() -> None:
    assert KvJournal(10).take().cleared


def test_nothing_new_is_an_empty_change() -> None:
    journal = KvJournal(10)
    journal.take()
    assert not journal.take()


def test_more_changes_than_the_bound_are_told_as_the_whole_truth() -> None:
    journal = KvJournal(4)
    journal.take()
    for block in HASHES:
        journal.record([], [block])
        journal.record([block], [])
    journal.record([], HASHES[:2])
    change = journal.take()
    assert change.cleared
    assert list(change.stored) == HASHES[:2]
    assert not change.removed


def test_a_snapshot_holds_everything_in_order() -> None:
    journal = KvJournal(10)
    journal.record([], HASHES[:3])
    journal.record([HASHES[0]], [HASHES[5]])
    snapshot = journal.snapshot(7, "5-0")
    assert snapshot.epoch == 7
    assert snapshot.stream_id == "5-0"
    assert unpack_hashes(snapshot.stored) == [HASHES[1], HASHES[2], HASHES[5]]
