"""Numbers as text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax.text_table import PREFIXES, quantity, span


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.18e8, "118 MFLOPs"),
        (4.813222102e21, "4.81 ZFLOPs"),
        (812, "812 FLOPs"),
        (0, "0 FLOPs"),
        (999_600, "1.00 MFLOPs"),  # rounding carries into the next prefix
        (2.5, "2.50 FLOPs"),
        (math.inf, "inf FLOPs"),
    ],
)
def test_a_quantity_has_three_digits_and_the_prefix_that_fits(value, text):
    assert quantity(value, "FLOPs") == text


def test_a_quantity_without_unit_has_its_prefix_behind_the_digits():
    assert [quantity(n) for n in (1_500_000, 34.4e9, 7)] == ["1.50M", "34.4G", "7"]


def test_an_estimated_time_has_the_unit_that_fits():
    times = (1.49e-6, 0.0123, 59, 90, 3600, 177 * 3600, 4231.4 * 3600)
    assert list(map(span, times)) == [
        "1.49 µs", "12.3 ms", "59 s", "1.5 min", "1 h", "177 h", "4,231 h"
    ]  # fmt: skip


@given(st.floats(1, 1e26), st.sampled_from([1, -1]))
def test_a_quantity_read_back_is_the_number_within_its_digits(value, sign):
    digits, prefix = quantity(sign * value, "B").split(" ")
    index = PREFIXES.index(prefix.removesuffix("B"))
    assert float(digits) * 1000**index == pytest.approx(sign * value, rel=0.0051)
    assert 1 <= abs(float(digits)) < 1000
