"""Searches in many stretches at once find what a search in each finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tiebeam.transforms._search import first_at_least, leaps

stretches = st.lists(st.lists(st.integers(-100, 100), min_size=1, max_size=60).map(sorted), max_size=8)


def joined(parts):
    lengths = np.array([len(part) for part in parts], np.int64)
    ends = np.cumsum(lengths)
    return np.array([value for part in parts for value in part], np.int64), ends - lengths, ends


@given(stretches, st.integers(-120, 120))
def test_first_at_least_is_a_search_in_each_stretch(parts, wanted):
    values, first, ends = joined(parts)
    found = first_at_least(values, np.full(len(first), wanted), first, ends)
    assert (found - first).tolist() == [int(np.searchsorted(part, wanted)) for part in parts]


@given(stretches, st.integers(1, 40), st.integers(0, 40))
def test_leaps_go_from_mark_to_mark(parts, length, earlier):
    values, first, ends = joined(parts)
    earlier = min(earlier, length - 1)
    expected = []
    for part in parts:
        last = part[0] - earlier
        for i, value in enumerate(part):
            mark = i == 0 or value - last >= length
            last = value if mark and i else last
            expected.append(mark)
    assert leaps(values, first, ends, values[first] - earlier, length).tolist() == expected


def test_a_long_chain_of_leaps():
    values = np.arange(300_000)
    assert leaps(values, np.array([0]), np.array([300_000]), np.array([0]), 3).sum() == 100_000
