"""Medians, ratios and goals of a comparison, from samples with round numbers."""

import dataclasses

import pytest

from loadtests.report import GOALS, Sample, Samples, Section, figure_rows, ratio_rows, sections, spread
from loadtests.sse import Answer
from loadtests.stream import Load, Plan


def sample(system: str, number: int, concurrency: int = 32, **figures: float) -> Sample:
    even = dict.fromkeys((field.name for field in dataclasses.fields(Sample)[3:]), 10.0)
    return Sample(system, number, concurrency, **{**even, **figures})


def three_rounds() -> Samples:
    speeds = {"bare": (4000, 2000, 1000), "ours": (2400, 1400, 800), "rayllm": (800, 700, 400)}
    fast = {"rayllm-fast": (1200, 1400, 200)}
    made = [
        sample(system, number, tokens_per_s=speed, other_cores=number / 10)
        for system, values in {**speeds, **fast}.items()
        for number, speed in enumerate(values, start=1)
    ]
    first_token = {"bare": (10, 12, 14), "ours": (20, 32, 24)}
    made += [
        sample(system, number, concurrency=1, ttft_p50=value)
        for system, values in first_token.items()
        for number, value in enumerate(values, start=1)
    ]
    return Samples(made)


def test_a_sample_is_in_milliseconds_and_cpu_seconds_a_thousand_tokens() -> None:
    answers = tuple(Answer(1.0, ttfb=0.1, ttft=ttft, gaps=(0.01, 0.03), tokens=50) for ttft in (0.2, 0.3))
    made = Sample.of("ours", 2, Load(Plan(8, 2), answers, seconds=0.5), cpu_seconds=0.5, other_cores=0.5)
    assert made == Sample("ours", 2, 8, 200.0, 200.0, 300.0, 10.0, 30.0, 5.0, 0.5)


def test_figures_are_median_and_range_in_the_order_of_the_systems() -> None:
    rows = figure_rows(three_rounds(), 32)
    assert [row[0] for row in rows] == [
        "bare vLLM",
        "vllm-chat-backend",
        "ray.serve.llm",
        "ray.serve.llm, fast path",
    ]
    assert rows[0][1] == "2000 (1000 to 4000)"


def test_ratios_pair_the_rounds() -> None:
    rows = {row[0]: row[1] for row in ratio_rows(three_rounds(), 32)}
    assert rows["vllm-chat-backend"] == "0.70 (0.60 to 0.80)"
    assert "bare vLLM" not in rows


def test_goals_are_met_or_missed_by_the_median() -> None:
    rows = [goal.row(three_rounds()) for goal in GOALS]
    assert [(row[1], row[2], row[3]) for row in rows] == [
        ("at least 0.6", "0.70 (0.60 to 0.80)", "met"),
        ("at least 1.2", "2.00 (1.00 to 2.00)", "met"),
        ("at most 15", "10.00 (10.00 to 20.00)", "met"),
        ("at most 0.5", "1.00 (1.00 to 1.00)", "missed"),
    ]


def test_what_was_not_measured_is_said() -> None:
    only_ours = Samples([sample("ours", 1)])
    assert {row[3] for row in (goal.row(only_ours) for goal in GOALS)} == {"not measured"}
    assert [section.title for section in sections(only_ours)] == ["c = 32", "Goals"]
    assert [section.title for section in sections(Samples([sample("bare", 1)]))] == ["c = 32"]


def test_the_noise_is_the_worst_of_all_samples() -> None:
    assert three_rounds().noise() == 10.0
    assert Samples([sample("bare", 1, other_cores=0.2), sample("bare", 2, other_cores=0.1)]).noise() == 0.2


@pytest.mark.parametrize(("values", "expected"), [([], "-"), ([1.26], "1.3"), ([3, 1, 2], "2.0 (1.0 to 3.0)")])
def test_spread(values: list[float], expected: str) -> None:
    assert spread(values, 1) == expected


def test_markdown_is_a_table() -> None:
    section = Section("c = 1", ["", "tokens/s"], [["bare vLLM", "5"]])
    assert section.markdown() == "### c = 1\n\n|  | tokens/s |\n| --- | --- |\n| bare vLLM | 5 |\n"
