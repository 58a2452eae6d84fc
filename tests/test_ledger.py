"""Where the time of a run goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax import ledger


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(ledger, "time", clock := Clock())
    return clock


def test_the_innermost_block_counts_also_when_it_raises(clock):
    times = ledger.Ledger()
    clock.now += 1
    with times.during("steps"):
        clock.now += 10
        with pytest.raises(ValueError, match="full"), times.during("save"):
            clock.now += 100
            raise ValueError("full")
        clock.now += 1000
    clock.now += 10_000
    assert times.so_far() == {"start": 10_001, "steps": 1010, "save": 100}
    assert times.total() == 11_111


def test_the_time_of_earlier_processes_is_added(clock):
    times = ledger.Ledger()
    times.add({"steps": 5.0, "lost": 2.0})
    with times.during("steps"):
        clock.now += 1
    assert times.so_far() == {"start": 0, "steps": 6, "lost": 2}


@given(st.lists(st.tuples(st.sampled_from(list(ledger.KINDS)), st.floats(0, 100)), max_size=8))
def test_the_parts_add_up_to_the_time_that_passed(blocks):
    clock, real = Clock(), ledger.time
    ledger.time = clock
    try:
        times, begun = ledger.Ledger(), clock.now
        for kind, seconds in blocks:
            with times.during(kind):
                clock.now += seconds
            clock.now += 0.5
        assert times.total() == pytest.approx(clock.now - begun)
    finally:
        ledger.time = real
