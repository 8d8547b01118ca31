"""The gate to an engine core, which keeps requests under suspicion apart."""

import asyncio

from serve_app.fleet.suspicion import Suspicion
from serve_app.replica.gate import Gate

TOGETHER, ALONE = Suspicion.TOGETHER, Suspicion.ALONE


class Visitor:
    def __init__(self, gate: Gate, suspicion: Suspicion) -> None:
        self.inside = False
        self._answered = asyncio.Event()
        self._task = asyncio.create_task(self._visit(gate, suspicion))

    async def _visit(self, gate: Gate, suspicion: Suspicion) -> None:
        async with gate.entered(suspicion):
            self.inside = True
            await self._answered.wait()
        self.inside = False

    async def answer(self) -> None:
        self._answered.set()
        await self._task

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self.inside = False


async def inside(*visitors: Visitor) -> list[bool]:
    for _ in range(20):
        await asyncio.sleep(0)
    return [visitor.inside for visitor in visitors]


async def test_those_that_are_suspected_alone_enter_one_at_a_time() -> None:
    gate = Gate()
    first, second = Visitor(gate, ALONE), Visitor(gate, ALONE)
    assert await inside(first, second) == [True, False]
    await first.answer()
    assert await inside(second) == [True]


async def test_those_together_enter_at_once_and_before_those_alone() -> None:
    gate = Gate()
    first = Visitor(gate, ALONE)
    await inside()
    second, third, fourth = Visitor(gate, ALONE), Visitor(gate, TOGETHER), Visitor(gate, TOGETHER)
    assert await inside(first, second, third, fourth) == [True, False, False, False]
    await first.answer()
    assert await inside(second, third, fourth) == [False, True, True]
    await third.answer()
    assert await inside(second, fourth) == [False, True]
    await fourth.answer()
    assert await inside(second) == [True]


async def test_one_that_leaves_while_it_waits_or_is_tried_holds_nobody_up() -> None:
    gate = Gate()
    tried, waiting, together, last = (Visitor(gate, kind) for kind in (ALONE, ALONE, TOGETHER, ALONE))
    await inside()
    await together.leave()
    await waiting.leave()
    assert await inside(tried, last) == [True, False]
    await tried.leave()
    assert await inside(last) == [True]
