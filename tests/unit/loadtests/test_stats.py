"""Percentiles are nearest-rank: always a measured value, exact at the edges."""

import math

import pytest

from loadtests.stats import Quantiles, percentile


@pytest.mark.parametrize(("percent", "expected"), [(0, 15), (5, 15), (30, 20), (40, 20), (50, 35), (95, 50), (100, 50)])
def test_nearest_rank_of_the_textbook_list(percent: float, expected: int) -> None:
    assert percentile([35, 50, 15, 40, 20], percent) == expected


def test_one_value_is_every_percentile() -> None:
    assert Quantiles.of([7.0]) == Quantiles(7.0, 7.0)


def test_a_hundred_values() -> None:
    assert Quantiles.of(range(1, 101)) == Quantiles(50, 95)


def test_no_values_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))
