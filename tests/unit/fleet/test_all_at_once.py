"""Deaths, planned moves, lost messages and clients that leave, all at once: exact answers, and nothing stays behind."""

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import pytest
from vllm.config import VllmConfig

from serve_app.config import ModelConfig
from serve_app.fleet.channel import SinkGone
from tests.answers import CASES, ask
from tests.unit.fleet.bed import Bed, running_bed, until

CLIENTS, EVENTS = 12, 100
PACE = "[[pace: 5ms]]"
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    *((content, {**settings, "stream": stream}) for content, settings in CASES.values() for stream in (True, False)),
    (CASES["plain"][0], {"stream": False, "seed": 1, "temperature": 1}),
]


class Clients:
    """Ask one thing after the other, and leave some answers."""

    def __init__(self, bed: Bed, chance: random.Random) -> None:
        self._bed, self._chance = bed, chance
        self._undisturbed: list[Any] = []
        self.over = False
        self.exact = 0

    async def prepare(self) -> None:
        self._undisturbed = [await self._ask(number) for number in range(len(REQUESTS))]

    async def run(self) -> None:
        while not self.over:
            number = self._chance.randrange(len(REQUESTS))
            answer = asyncio.create_task(self._ask(number))
            if self._chance.random() < 0.1:
                await asyncio.sleep(self._chance.random() / 5)
                answer.cancel()
                await asyncio.wait([answer])
            else:
                assert await answer == self._undisturbed[number], REQUESTS[number]
                self.exact += 1

    async def _ask(self, number: int) -> Any:
        content, settings = REQUESTS[number]
        return await ask(self._bed.client, content + PACE, **settings)


async def strike(bed: Bed, chance: random.Random) -> None:
    replica = chance.choice(bed.handle.living)
    match chance.choice(["death", "move", "move", "cut", "loss"]):
        case "death":
            await bed.start_replica()
            replica.kill()
        case "move":
            for entry in bed.entries:
                if chance.random() < 0.3:
                    bed.fleet._peers._move(entry)
        case "cut":
            for address in replica.replica._sender.addresses():
                replica.replica._courier.give_up(SinkGone(address), address)
        case "loss" if entries := [entry for entry in bed.entries if entry.tokens]:
            bed.lose(len(chance.choice(entries).tokens))


def left_behind(bed: Bed) -> Iterable[Any]:
    """What there is only as long as requests are open."""
    fleet, replicas = bed.fleet, [living.replica for living in bed.handle.living]
    assert bed.model.frontend is not None
    processor = bed.model.frontend._engine.output_processor
    yield from (fleet._unread, len(fleet.journal), fleet._attempts, fleet._outbox._steps, bed.quarantine._running)
    yield from (processor.request_states, processor.external_req_ids, processor.parent_requests)
    yield from (bed.model.frontend.admission.running, bed.model.frontend.admission.waiting)
    yield from (replica._courier.attempts for replica in replicas)
    yield from (replica._engine.core._queue for replica in replicas)  # type: ignore[attr-defined]
    yield from (replica._gate._together or replica._gate._alone for replica in replicas)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_answers_are_exact_and_nothing_is_left_behind(config: VllmConfig, model: ModelConfig, seed: int) -> None:
    chance = random.Random(seed)
    async with running_bed(config, model, failover={"max_moves": 1000, "tokens_per_s": 0}) as bed:
        bed.loses = True  # the engines do not wait for the gateway
        clients = Clients(bed, chance)
        await clients.prepare()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CLIENTS):
                tasks.create_task(clients.run())
            for _ in range(EVENTS):
                await asyncio.sleep(chance.random() / 10)
                await strike(bed, chance)
            clients.over = True
        await until(lambda: not any(left_behind(bed)), "the end of all that requests hold")
        assert clients.exact > CLIENTS
