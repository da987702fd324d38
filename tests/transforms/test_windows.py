"""Windows beyond the laws (tests/laws): days of real clocks, early panes, late rows, and what is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import folding, matrix
from support.events import MINUTE, SECOND, TIME
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._fold import mark, tables_of
from tiebeam.transforms.aggregate import Aggregate, ApproxDistinct, Calendar, Count, Fixed, Sessions, Sliding, Sum

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rows_of(micros, **more) -> RowBatch:
    return RowBatch.from_pydict({**more, ROW_TIME: pa.array(micros, pa.int64()).cast(TIME)})


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def span_of(calendar: Calendar, at: int) -> tuple[int, int]:
    starts = calendar.panes(np.array([at]))
    return int(starts[0]), int(calendar.ends(starts)[0])


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("America/New_York", date(2026, 3, 8), 23),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("America/Sao_Paulo", date(2018, 11, 4), 23),  # there was no midnight
        ("America/Havana", date(2026, 11, 1), 25),  # midnight came twice
        ("UTC", date(2026, 3, 29), 24),
    ],
)
def test_a_day_is_as_long_as_its_clocks_have_it(zone, day, hours):
    noon = micros(datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo(zone)))
    start, end = span_of(Calendar("day", zone), noon)
    assert (end - start) / 3_600_000_000 == hours
    last, first = (EPOCH + timedelta(microseconds=m) for m in (start - 1, start))
    assert (last.astimezone(ZoneInfo(zone)).date(), first.astimezone(ZoneInfo(zone)).date()) == (day - timedelta(1), day)


def test_a_day_that_never_was_has_no_rows():
    """Samoa went from 29 to 31 December 2011."""
    zone = "Pacific/Apia"
    start, end = span_of(Calendar("day", zone), micros(datetime(2011, 12, 29, 12, tzinfo=ZoneInfo(zone))))
    assert end - start == 24 * 3_600_000_000
    following, _ = span_of(Calendar("day", zone), end)
    assert following == end
    assert (EPOCH + timedelta(microseconds=end)).astimezone(ZoneInfo(zone)).date() == date(2011, 12, 31)


zones = st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu", "America/Sao_Paulo"])


times = st.integers(micros(datetime(1972, 1, 1, tzinfo=UTC)), micros(datetime(2037, 1, 1, tzinfo=UTC)))


@given(zones, st.sampled_from(["day", "week", "month"]), times)
def test_windows_of_a_calendar_stand_side_by_side(zone, unit, at):
    calendar = Calendar(unit, zone)
    start, end = span_of(calendar, at)
    assert start <= at < end
    assert span_of(calendar, start)[0] == span_of(calendar, end - 1)[0] == start
    assert span_of(calendar, end)[0] == end
    local = (EPOCH + timedelta(microseconds=start)).astimezone(ZoneInfo(zone)).date()
    before = (EPOCH + timedelta(microseconds=start - 1)).astimezone(ZoneInfo(zone)).date()
    assert before < local
    if zone != "Pacific/Apia":
        assert {"day": True, "week": local.weekday() == 0, "month": local.day == 1}[unit]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(window=Sliding("1h", "x")), "window, period"),
        (dict(window=Fixed("1h", "-1m")), "window, offset"),
        (dict(window=Calendar("year", "Mars/Base")), "(?s)day, week, month.*no time zone"),
        (dict(window=Sessions("0s")), "window, gap"),
        (dict(window=3.5j), "is no window"),
        (dict(window="1h", early="soon"), "early"),
        (dict(early="1m"), 'add window="1h"'),
        (dict(window=Sessions("1m"), early="1m"), "only fixed, sliding and calendar"),
        (dict(window="1h", early="1m", k=ApproxDistinct("x")), "not told early"),
        (dict(window="1h", accumulation="both"), "accumulating, discarding"),
        (dict(window="1h", late="drop"), "reject, output"),
        (dict(window="1h", by="window_end"), "window's own column"),
        (dict(window="1h", early="1m", pane=Count()), "a column of the result already"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, said):
    with pytest.raises(ConfigError, match=said):
        Aggregate(**{"by": "user", "n": Count(), **options})


ARRIVALS = [rows_of([5 * SECOND], x=[1]), 10.0, rows_of([12 * SECOND, 13 * SECOND], x=[2, 3]), 30.0, rows_of([31 * SECOND], x=[4]), 60.0]


def told(aggregate: Aggregate, prism, *events) -> matrix.Outcome:
    return matrix.run({"trial": matrix.Trial(aggregate, [])}, matrix.scripted(*events), prism.flags())["trial"]


def panes(rows: matrix.Rows) -> list[tuple]:
    return sorted((row[ROW_TIME].timestamp(), row["pane"], row["total"]) for row in rows)


def test_early_panes_tell_what_is_known_so_far(prism):
    rows, letters = told(Aggregate(window="1m", early="10s", total=Sum("x")), prism, *ARRIVALS)
    assert letters == []
    assert panes(rows) == [
        (9.999999, "early", 1), (19.999999, "early", 6), (39.999999, "early", 10), (59.999999, "on_time", 10),
    ]  # fmt: skip


def test_discarding_panes_tell_what_is_new(prism):
    rows, _ = told(Aggregate(window="1m", early="10s", accumulation="discarding", total=Sum("x")), prism, *ARRIVALS)
    assert panes(rows) == [(9.999999, "early", 1), (19.999999, "early", 5), (39.999999, "early", 4)]


@pytest.mark.parametrize("accumulation", ["accumulating", "discarding"])
def test_a_bounded_input_has_one_pane(accumulation):
    given_rows = [event for event in ARRIVALS if isinstance(event, RowBatch)]
    rows, _ = matrix.in_batch(Aggregate(window="1m", early="10s", accumulation=accumulation, total=Sum("x")), given_rows)
    assert panes(rows) == [(59.999999, "on_time", 10)]


LATE = [rows_of([5 * SECOND], x=[1]), 65.0, rows_of([6 * SECOND], x=[2]), 90.0, rows_of([7 * SECOND], x=[3])]


def test_rows_that_come_too_late_leave_whole(prism):
    rows, late = told(Aggregate(window="1m", late="output", total=Sum("x")), prism, *LATE)
    assert [row["total"] for row in rows] == [1]
    assert sorted((row[ROW_TIME].timestamp(), row["x"]) for row in late) == [(6, 2), (7, 3)]


def test_a_window_is_kept_open_for_as_long_as_rows_may_be_late(prism):
    rows, letters = told(Aggregate(window="1m", lateness="20s", total=Sum("x")), prism, *LATE)
    assert [row["total"] for row in rows] == [3]
    assert [(letter["reason"], letter[ROW_TIME].timestamp()) for letter in letters] == [("late", 7)]


def test_windows_of_windows_are_exact_in_a_stream(prism):
    batch = rows_of(np.arange(200) * 7 * SECOND, x=pa.array(np.arange(200)))

    def chain(rows):
        return rows | "Minutes" >> Aggregate(window="1m", total=Sum("x")) | "Tens" >> Aggregate(window="10m", total=Sum("total"), n=Count())

    streamed = matrix.in_ticks(chain, [batch], prism.flags(), disorder=25 * SECOND, seed=4)
    assert streamed == matrix.in_batch(chain, [batch])
    assert sum(row["total"] for row in streamed.rows) == sum(range(200))


def test_a_stream_keeps_partial_results_not_rows():
    fold = Aggregate("user", window="1h", tick="1m", total=Sum("x")).keyed().fold
    state = {}
    for tick in range(30):
        rows = rows_of(np.full(100, tick * MINUTE), user=["a"] * 100, x=[1] * 100)
        waiting = fold.condense("rows", fold.condense("rows", rows))
        assert waiting.num_rows == 1
        folded = fold.fold(state, tables_of([mark(waiting, name="rows")]), (tick + 1) * MINUTE)
        assert list(folded.rows) == []
        state = folding.through_coder(folded.state)
    assert state["part "].num_rows == 1
