"""What a storm counts, and when it says that the promise was kept."""

from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from loadtests.chaos import table
from loadtests.running import SystemFailedError
from loadtests.sse import Answer
from loadtests.storm import Outcome, Storm, Sums, run_storm
from loadtests.target import Target
from loadtests.victims import Killer
from tests.unit.loadtests.sse_server import KEY, Script, serving, text

GOOD = Answer(2.0, ttft=0.5, gaps=(0.1, 1.0), tokens=2, prompt_tokens=3, text="one two")
"""What the loopback server says."""
CUT = Answer(9.0, ttft=0.5, error="error frame: gone", text="one")
KEPT: dict[str, object] = {"kills": Counter(replica=1), "billed": Sums(3, 9, 6)}


def outcome(*answers: Answer, expected: int = 1, **fields: object) -> Outcome:
    return Outcome([GOOD] * expected, [(0, answer) for answer in answers], **{**KEPT, **fields})  # type: ignore[arg-type]


def test_a_promise_that_was_kept() -> None:
    kept = outcome(GOOD, GOOD)
    assert (kept.complete, kept.exact, kept.failures()) == (2, 2, [])
    assert kept.worst_stall_s == 1.0


def test_a_stream_that_was_cut_is_not_complete() -> None:
    cut = outcome(GOOD, CUT, CUT, billed=Sums(4, 12, 6))
    assert (cut.complete, cut.exact, cut.worst_stall_s) == (1, 1, 8.5)
    assert cut.failures() == ["2 streams failed: error frame: gone"]


@pytest.mark.parametrize(
    "changed",
    [
        Answer(1.0, tokens=2, prompt_tokens=3, text="one one two"),
        Answer(1.0, tokens=3, prompt_tokens=3, text="one two"),
        Answer(1.0, tokens=2, prompt_tokens=4, text="one two"),
    ],
)
def test_a_stream_with_other_tokens_is_not_exact(changed: Answer) -> None:
    wrong = outcome(GOOD, changed, billed=Sums(3, 6 + changed.prompt_tokens, 4 + changed.tokens))
    assert (wrong.complete, wrong.exact) == (2, 1)
    assert wrong.failures() == ["1 of 2 streams lost, repeated or changed tokens"]


def test_each_stream_is_held_against_its_own_answer() -> None:
    other = Answer(1.0, tokens=2, prompt_tokens=3, text="three four")
    assert Outcome([GOOD, other], [(0, GOOD), (1, other)]).exact == 2
    assert Outcome([GOOD, other], [(0, other), (1, GOOD)]).exact == 0


def test_a_ledger_that_differs_by_a_token_breaks_the_promise() -> None:
    (failure,) = outcome(GOOD, GOOD, billed=Sums(3, 9, 7)).failures()
    assert failure.startswith("the ledger has")


def test_the_ledger_has_a_row_for_each_refusal() -> None:
    assert outcome(GOOD, GOOD, refused=2).received == Sums(5, 9, 6)


def test_a_storm_without_a_kill_shows_nothing() -> None:
    assert outcome(GOOD, GOOD, kills=Counter()).failures() == ["nothing was killed"]


def test_the_table_has_one_row() -> None:
    made = table("title", outcome(GOOD, CUT, refused=3, kills=Counter(replica=2, hang=1)))
    cells = [list(column.cells) for column in made.columns]
    assert cells == [
        ["2"],
        ["3 (1 hang, 2 replica)"],
        ["1"],
        ["1"],
        ["3"],
        ["8.5"],
    ]


@pytest.fixture
def nobody() -> Iterator[Killer]:
    """A killer that finds nobody."""
    with psutil.Popen(["sleep", "60"]) as sleeping:
        yield Killer(psutil.Process(sleeping.pid), "loopback", ["replica"], seed=0, spare=0)
        sleeping.kill()


async def test_streams_are_asked_again_until_the_time_is_over(nobody: Killer) -> None:
    script, news = Script(), list[int]()
    with serving(script) as url:
        storm = Storm(streams=3, tokens=2, seconds=0.5, every_s=0.1, directives="[[pace: 1ms]]")
        got = await run_storm(Target(url, "loopback", KEY), nobody, storm, lambda now: news.append(len(now.answers)))
    assert got.exact == len(got.answers) == news[-1] >= 3
    assert got.billed == got.received == Sums(len(script.bodies), 3 * len(script.bodies), 2 * len(script.bodies))
    assert {str(body["messages"]).count("[[pace: 1ms]]") for body in script.bodies} == {1}
    assert len({str(body["messages"]) for body in script.bodies}) == 3
    assert got.kills == {}


async def test_a_stream_that_is_refused_comes_again(nobody: Killer) -> None:
    script = Script(refuse=frozenset({2, 3, 4}))
    with serving(script) as url:
        storm = Storm(streams=2, seconds=0.1, every_s=1)
        got = await run_storm(Target(url, "loopback", KEY), nobody, storm, lambda _: None)
    assert (got.refused, got.exact) == (3, len(got.answers))
    assert got.billed == got.received
    assert got.received.requests == len(script.bodies) == 2 + 3 + len(got.answers)


async def test_a_service_that_fails_in_peace_is_not_put_to_the_test(nobody: Killer) -> None:
    told = pytest.raises(SystemFailedError, match="2 streams failed before anything was killed")
    with serving(Script(pieces=[text("a")])) as url, told:
        await run_storm(Target(url, "loopback", KEY), nobody, Storm(streams=2), lambda _: None)
