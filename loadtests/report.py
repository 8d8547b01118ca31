"""Turns the samples of a comparison into tables, ratios to bare vLLM, and the goals met or missed."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loadtests.stream import Load
from loadtests.systems import SYSTEMS


@dataclass(frozen=True, slots=True)
class Sample:
    """What one system did in one round at one concurrency. Times are milliseconds, CPU is seconds."""

    system: str
    round: int
    concurrency: int
    tokens_per_s: float
    ttft_p50: float
    ttft_p95: float
    inter_token_p50: float
    inter_token_p95: float
    cpu_per_1000_tokens: float
    other_cores: float

    @classmethod
    def of(cls, system: str, number: int, load: Load, cpu_seconds: float, other_cores: float) -> "Sample":
        """The sample of a load that took `cpu_seconds` outside the engine, beside `other_cores` of noise."""
        return cls(
            system,
            number,
            load.plan.concurrency,
            load.tokens_per_s,
            load.ttft.p50 * 1000,
            load.ttft.p95 * 1000,
            load.inter_token.p50 * 1000,
            load.inter_token.p95 * 1000,
            cpu_seconds / max(1, load.tokens) * 1000,
            other_cores,
        )


METRICS = {
    "tokens_per_s": ("tokens/s", 0),
    "ttft_p50": ("TTFT p50 ms", 1),
    "ttft_p95": ("TTFT p95 ms", 1),
    "inter_token_p50": ("inter-token p50 ms", 1),
    "inter_token_p95": ("inter-token p95 ms", 1),
    "cpu_per_1000_tokens": ("CPU s per 1000 tokens", 3),
}

HEADINGS = ["", *(heading for heading, _ in METRICS.values())]


class Samples:
    """All samples of a comparison, found by system, round and concurrency."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_place = {(each.system, each.round, each.concurrency): each for each in samples}

    def systems(self) -> list[str]:
        """The systems measured, in the order of the reports."""
        measured = {system for system, _, _ in self._by_place}
        return [system for system in SYSTEMS if system in measured]

    def concurrencies(self) -> list[int]:
        return sorted({concurrency for _, _, concurrency in self._by_place})

    def noise(self) -> float:
        """The most cores that other processes of the machine used during any sample."""
        return max((sample.other_cores for sample in self._by_place.values()), default=0.0)

    def values(self, system: str, concurrency: int, metric: str) -> dict[int, float]:
        """The metric by round."""
        return {
            number: float(getattr(sample, metric))
            for (name, number, level), sample in self._by_place.items()
            if (name, level) == (system, concurrency)
        }

    def paired(
        self, one: str, other: str, concurrency: int, metric: str, combine: Callable[[float, float], float]
    ) -> list[float]:
        """The metric of two systems combined, round by round, for the rounds that have both."""
        ones, others = (self.values(system, concurrency, metric) for system in (one, other))
        return [combine(ones[number], others[number]) for number in sorted(ones.keys() & others.keys())]

    def ratios(self, one: str, other: str, concurrency: int, metric: str) -> list[float]:
        """One system's metric over the other's, by round."""
        return self.paired(one, other, concurrency, metric, lambda a, b: a / b if b else float("nan"))


def figure_rows(samples: Samples, concurrency: int) -> list[list[str]]:
    """A row for each system: every metric as `median (min to max)` over the rounds."""
    return [
        [
            SYSTEMS[system].label,
            *(
                spread(samples.values(system, concurrency, metric).values(), digits)
                for metric, (_, digits) in METRICS.items()
            ),
        ]
        for system in samples.systems()
    ]


def ratio_rows(samples: Samples, concurrency: int) -> list[list[str]]:
    """A row for each system but bare vLLM: every metric as a ratio to bare vLLM's of the same round."""
    return [
        [
            SYSTEMS[system].label,
            *(spread(samples.ratios(system, "bare", concurrency, metric), 2) for metric in METRICS),
        ]
        for system in samples.systems()
        if system != "bare" and "bare" in samples.systems()
    ]


def spread(values: Iterable[float], digits: int) -> str:
    """`median (min to max)`, or the value alone if there is one, or a dash."""
    known = list(values)
    if not known:
        return "-"
    middle = f"{statistics.median(known):.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.{digits}f} to {max(known):.{digits}f})"


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit on one figure of this project, and how to get the figure of every round."""

    text: str
    limit: float
    at_least: bool
    figures: Callable[[Samples], list[float]]

    def row(self, samples: Samples) -> list[str]:
        """The goal, its limit, the median figure and whether it is met; a dash where nothing was measured."""
        limit = f"{'at least' if self.at_least else 'at most'} {self.limit:g}"
        figures = self.figures(samples)
        if not figures:
            return [self.text, limit, "-", "not measured"]
        median = statistics.median(figures)
        met = median >= self.limit if self.at_least else median <= self.limit
        return [self.text, limit, spread(figures, 2), "met" if met else "missed"]


def over_the_best_peer(samples: Samples) -> list[float]:
    """tokens/s at c=32 over the better of the two ray.serve.llm systems, by round."""
    peers = [samples.ratios("ours", peer, 32, "tokens_per_s") for peer in ("rayllm", "rayllm-fast")]
    return [min(ratios) for ratios in zip(*peers, strict=False)]


def ttft_over_bare(samples: Samples) -> list[float]:
    """TTFT p50 at c=1 above bare vLLM's, in milliseconds, by round."""
    return samples.paired("ours", "bare", 1, "ttft_p50", lambda a, b: a - b)


GOALS = (
    Goal("tokens/s at c=32, over bare vLLM", 0.60, True, lambda s: s.ratios("ours", "bare", 32, "tokens_per_s")),
    Goal("tokens/s at c=32, over the best of ray.serve.llm", 1.2, True, over_the_best_peer),
    Goal("TTFT p50 at c=1, above bare vLLM, ms", 15, False, ttft_over_bare),
    Goal(
        "CPU per 1000 tokens at c=32, over ray.serve.llm's fast path",
        0.5,
        False,
        lambda s: s.ratios("ours", "rayllm-fast", 32, "cpu_per_1000_tokens"),
    ),
)

GOAL_HEADINGS = ["goal", "limit", "measured", ""]


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table, ready for the terminal or for Markdown."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        rule = ["---" for _ in self.headings]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headings, rule, *self.rows)]
        return "\n".join([f"### {self.title}", "", *lines, ""])


def sections(samples: Samples) -> list[Section]:
    """Every table of the report: figures and ratios for each concurrency, then the goals."""
    tables = []
    for concurrency in samples.concurrencies():
        tables.append(Section(f"c = {concurrency}", HEADINGS, figure_rows(samples, concurrency)))
        if ratios := ratio_rows(samples, concurrency):
            tables.append(Section(f"c = {concurrency}, ratio to bare vLLM", HEADINGS, ratios))
    if "ours" in samples.systems():
        tables.append(Section("Goals", GOAL_HEADINGS, [goal.row(samples) for goal in GOALS]))
    return tables
