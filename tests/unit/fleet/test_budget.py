"""The pace of moves, in virtual time."""

import asyncio

import pytest

from serve_app.fleet.budget import MoveBudget
from tests.virtual_time import now, run


async def taken_at(budget: MoveBudget, *costs: int) -> list[float]:
    """When each of several moves that come at once has its turn, to the hundredth of a second."""

    async def take(cost: int) -> float:
        await budget.take(cost)
        return round(now(), 2)

    return await asyncio.gather(*map(take, costs))


def test_a_second_of_tokens_goes_at_once_and_the_rest_in_turn() -> None:
    async def main() -> None:
        assert await taken_at(MoveBudget(100, now), 50, 50, 50, 50, 50) == [0, 0, 0.01, 0.51, 1.01]

    run(main())


def test_a_move_that_is_larger_than_the_bucket_goes_and_those_after_it_wait_for_it() -> None:
    async def main() -> None:
        assert await taken_at(MoveBudget(100, now), 1000, 1, 1) == [0, 9.01, 9.02]

    run(main())


@pytest.mark.parametrize(
    ("replicas", "gateways", "costs", "times"),
    [(4, 1, (100, 400, 1), [0, 0, 1]), (0, 2, (50, 50, 1), [0, 0.02, 1.02])],
)
def test_more_replicas_make_it_faster_and_more_gateways_slower(
    replicas: int, gateways: int, costs: tuple[int, ...], times: list[float]
) -> None:
    async def main() -> None:
        budget = MoveBudget(100, now)
        budget.set_replicas(replicas, gateways)
        assert await taken_at(budget, *costs) == times

    run(main())


def test_without_a_bound_nothing_waits() -> None:
    async def main() -> None:
        assert await taken_at(MoveBudget(0, now), *[10**9] * 10) == [0] * 10

    run(main())


def test_a_move_whose_client_leaves_gives_its_turn_to_the_next() -> None:
    async def main() -> None:
        budget = MoveBudget(100, now)
        await budget.take(200)
        leaver = asyncio.create_task(budget.take(1000))
        next_one = asyncio.create_task(taken_at(budget, 10))
        await asyncio.sleep(0.5)
        leaver.cancel()
        assert await next_one == [1.01]

    run(main())
