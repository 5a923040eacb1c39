"""Retention: the last few, held steps, the allowed bytes, and always the newest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainenv.checkpoints.manifest import Entry, checkpoint_name
from trainenv.checkpoints.retention import plan, without


def entry(sequence: int, size: int = 10, step: int | None = None) -> Entry:
    step = sequence if step is None else step
    return Entry(
        file=checkpoint_name(step, sequence),
        step=step,
        sequence=sequence,
        tier="exact",
        bytes=size,
        digest="0" * 32,
    )


def planned(
    entries: list[Entry],
    keep_last: int = 100,
    max_bytes: int | None = None,
    held: tuple[int, ...] = (),
) -> list[tuple[int, str]]:
    """Sequence number and reason of what goes."""
    names = {e.file: e.sequence for e in entries}
    held_files = {e.file for e in entries if e.sequence in held}
    deletions = plan(entries, keep_last=keep_last, max_bytes=max_bytes, held=held_files)
    return [(names[deletion.file], deletion.reason) for deletion in deletions]


FIVE = [entry(sequence) for sequence in range(1, 6)]


def test_the_last_few_are_kept() -> None:
    assert planned(FIVE, keep_last=2) == [(1, "retention"), (2, "retention"), (3, "retention")]
    assert planned(FIVE, keep_last=5) == []
    assert planned(FIVE, keep_last=6) == []
    assert planned([], keep_last=1) == []


def test_last_is_by_order_of_saving_not_by_step() -> None:
    rewound = [entry(1, step=100), entry(2, step=200), entry(3, step=50)]
    assert planned(rewound, keep_last=1) == [(1, "retention"), (2, "retention")]


def test_what_is_held_stays_beside_the_last_few() -> None:
    assert planned(FIVE, keep_last=2, held=(1,)) == [(2, "retention"), (3, "retention")]
    assert planned(FIVE, keep_last=2, held=(5,)) == [
        (1, "retention"),
        (2, "retention"),
        (3, "retention"),
    ]


def test_the_cap_takes_the_oldest_that_nobody_holds_but_never_the_newest() -> None:
    assert planned(FIVE, max_bytes=50) == []
    assert planned(FIVE, max_bytes=49) == [(1, "cap")]
    assert planned(FIVE, max_bytes=25, held=(1, 3)) == [(2, "cap"), (4, "cap")]
    assert planned(FIVE, max_bytes=1) == [(1, "cap"), (2, "cap"), (3, "cap"), (4, "cap")]
    assert planned([entry(1, size=1000), entry(2, size=10)], max_bytes=10) == [(1, "cap")]


def test_what_retention_takes_is_not_counted_for_the_cap() -> None:
    assert planned(FIVE, keep_last=3, max_bytes=20) == [
        (1, "retention"),
        (2, "retention"),
        (3, "cap"),
    ]


@given(
    sizes=st.lists(st.integers(1, 100), max_size=12),
    keep_last=st.integers(1, 13),
    max_bytes=st.none() | st.integers(1, 600),
    held=st.sets(st.integers(1, 12)),
)
def test_a_plan_takes_no_more_than_it_must(
    sizes: list[int], keep_last: int, max_bytes: int | None, held: set[int]
) -> None:
    entries = [entry(place, size) for place, size in enumerate(sizes, start=1)]
    files = {e.file for e in entries if e.sequence in held}
    deletions = plan(entries, keep_last=keep_last, max_bytes=max_bytes, held=files)
    kept = without(entries, deletions)
    assert not files & {deletion.file for deletion in deletions}
    assert not entries or entries[-1] in kept
    assert [(deletion.bytes, deletion.step) for deletion in deletions] == [
        (e.bytes, e.step)
        for e in sorted(
            (e for e in entries if e not in kept),
            key=lambda e: [d.file for d in deletions].index(e.file),
        )
    ]
    total = sum(e.bytes for e in kept)
    free = [e for e in kept[:-1] if e.file not in files]
    assert max_bytes is None or total <= max_bytes or not free
    assert len(free) <= keep_last
    taken = [deletion.bytes for deletion in deletions if deletion.reason == "cap"]
    assert not taken or (max_bytes is not None and total + taken[-1] > max_bytes)
