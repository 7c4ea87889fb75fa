"""The ledger against a plain model of it."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from services.simulators.ledger import Ledger

IDS = [f"id_00000000-0000-4000-8000-{n:012}" for n in range(6)]
TAGS = [*IDS, "id_", "id_cut", "sensor", "kind"]

records = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["motion", "net"]),
        st.integers(-5, 5),
        st.sets(st.sampled_from(TAGS), max_size=4),
    ),
    max_size=200,
)


@given(
    records,
    st.sets(st.integers(0, 1), min_size=1),
    st.none() | st.integers(-6, 6),
    st.none() | st.integers(-6, 6),
    st.none() | st.sets(st.sampled_from(["motion", "net", "other"])),
    st.sets(st.sampled_from(TAGS), max_size=2),
    st.sets(st.sampled_from(TAGS), max_size=2),
    st.booleans(),
)
def test_finding_is_as_in_a_plain_list(  # noqa: PLR0917
    told: list[tuple[int, str, int, set[str]]],
    sources: set[int],
    start: int | None,
    end: int | None,
    labels: set[str] | None,
    tags: set[str],
    without: set[str],
    newest_first: bool,
) -> None:
    ledger = Ledger("id_")
    assert [ledger.add_source(name) for name in "ab"] == [0, 1]
    for number, (source, label, moment, carried) in enumerate(told):
        assert ledger.add(source, label, moment, b"%d" % number, carried) == number
    expected = sorted(
        (
            number
            for number, (source, label, moment, carried) in enumerate(told)
            if source in sources
            and (start is None or moment >= start)
            and (end is None or moment < end)
            and (labels is None or label in labels)
            and (not tags or tags & carried)
            and not without & carried
        ),
        key=lambda number: (told[number][2], number),
        reverse=newest_first,
    )
    for _ in range(2):
        found = ledger.find(
            sources,
            start=start,
            end=end,
            labels=labels,
            tags=tags,
            without=without,
            newest_first=newest_first,
        )
        assert list(found) == expected
    assert [ledger.record(number) for number in range(len(told))] == [b"%d" % n for n in range(len(told))]
    for source, owner in enumerate(ledger.sources):
        carried_ids = [tag for one, _, _, carried in told if one == source for tag in carried & set(IDS)]
        assert owner.tagged == len(carried_ids)
        assert owner.distinct == len(set(carried_ids))


def test_changed_records_are_found_as_they_are_now() -> None:
    ledger = Ledger("id_")
    ledger.add_source("a")
    for number in range(200):
        ledger.add(0, "motion", number, b"%d" % number, [IDS[0]] if number < 2 else ["kind"])
    assert [(source, tag, list(at)) for source, tag, at in ledger.duplicates()] == [("a", IDS[0], [0, 1])]
    ledger.change(1, b"changed", removed=IDS[0])
    ledger.change(3, b"also", added=IDS[1])
    assert list(ledger.duplicates()) == []
    assert (ledger.sources[0].tagged, ledger.sources[0].distinct) == (2, 2)
    assert ledger.record(1) == b"changed"
    assert ledger.record(2) == b"2"
    assert list(ledger.find([0], tags=[IDS[0]])) == [0]
    assert list(ledger.find([0], tags=[IDS[1]])) == [3]
    for number in range(2, 200):
        ledger.change(number, b"", removed="kind")
    assert list(ledger.find([0], tags=["kind"])) == []


def test_forgetting_keeps_the_sources() -> None:
    ledger = Ledger("id_")
    ledger.add_source("a")
    ledger.add(0, "motion", 1, b"1", [IDS[0]])
    ledger.forget()
    assert len(ledger) == 0
    assert list(ledger.find([0], tags=[IDS[0]])) == []
    assert ledger.add(0, "motion", 1, b"2", [IDS[0]]) == 0
    assert list(ledger.duplicates()) == []


def test_an_events_columns_and_record_are_small() -> None:
    ledger = Ledger("id_")
    ledger.add_source("a")
    for number in range(6400):
        record = b'{"id":%d,"meta":{"kind":"motion.detected","sensor":"hall-%d"}}' % (number, number % 50)
        ledger.add(0, "motion", number, record * 10, ())
    columns = (ledger.times, ledger.arrived, ledger.monotonic, ledger.source, ledger.label)
    size = sum(map(sys.getsizeof, columns)) + sum(map(sys.getsizeof, ledger._blocks))
    assert size / 6400 < 150
