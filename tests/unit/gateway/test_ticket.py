"""The ticket of a request with several prompts and choices: charged together, let in together, settled to the truth."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from serve_app.fleet.journal import Entry
from serve_app.gateway.admission import Admission, AdmissionConfig
from serve_app.gateway.call import Call
from serve_app.gateway.errors import GatewayError, Overloaded, RateLimited
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.keys.record import Limits
from serve_app.gateway.limits.limiter import Claim, Decision, Holder, Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.requests import RequestLimits
from serve_app.gateway.ticket import Ticket
from tests.unit.gateway.test_admission import settle
from tests.virtual_time import run

BUDGET, REQUESTS = 1000, 100
QUOTA = Quota(requests_per_minute=REQUESTS, tokens_per_minute=BUDGET)


class Limiter(MemoryLimiter):
    """At a moment that does not pass. It remembers what was claimed."""

    def __init__(self) -> None:
        super().__init__(30, lambda: 0)
        self.claims: list[tuple[int, int]] = []

    async def reserve(self, claim: Claim) -> Decision:
        self.claims.append((claim.requests, claim.tokens))
        return await super().reserve(claim)

    async def left(self) -> tuple[int, int]:
        """Requests and tokens that the key has left."""
        decision = await super().reserve(Claim(Holder("key", "observer"), QUOTA))
        assert decision.requests
        assert decision.tokens
        return decision.requests.remaining, decision.tokens.remaining


class Model:
    """A model with so many places, in front of which one key has its limits."""

    def __init__(self, places: int = 100) -> None:
        self.limiter = Limiter()
        self.limits = RequestLimits(self.limiter, 30)
        self.admission = Admission(AdmissionConfig(max_waiting=1), places)
        self.up_since: float | None = 0.0
        self.requests = 0


class Asked(NamedTuple):
    """What a request asks for."""

    prompts: Sequence[int]
    """Tokens of each."""
    choices: int = 1
    most: int = 10
    """Tokens of a choice."""
    bounded: bool = True


class Request:
    """One HTTP request, as vLLM's front end carries it out: all prompts at once, the choices of each in turn."""

    def __init__(self, model: Model, asked: Asked, context: int | None = None) -> None:
        model.requests += 1
        self.model, self.asked, self.id = model, asked, str(model.requests)
        self.caller = Caller("key", "key", limits=Limits(context=context))
        self.let_in: list[Entry] = []

    async def open(self, expected: int | None = None) -> None:
        reservation = await self.model.limits.open(Holder("key", self.id), QUOTA)
        self.call = Call(self.id, self.caller, QUOTA, reservation)
        self.refused: asyncio.Future[GatewayError] = asyncio.get_running_loop().create_future()
        self.call.ticket = self.ticket = Ticket(
            "m",
            self.caller,
            lambda: self.model.admission,
            reservation,
            QUOTA,
            deadline=None,
            bounded=self.asked.bounded,
            prompts=len(self.asked.prompts) if expected is None else expected,
            choices=self.asked.choices,
            up_since=lambda: self.model.up_since,
        )
        self.ticket.on_refusal = lambda error: None if self.refused.done() else self.refused.set_result(error)

    async def start(self) -> bool:
        """Whether it is let in."""
        try:
            await self.open()
        except RateLimited:
            return False
        self.tasks = [asyncio.create_task(self._generate(place)) for place in range(len(self.asked.prompts))]
        await asyncio.wait([asyncio.gather(*self.tasks), self.refused], return_when=asyncio.FIRST_COMPLETED)
        if self.refused.done():
            await self.end()
        return not self.refused.done()

    async def _generate(self, place: int) -> None:
        params = SamplingParams(max_tokens=self.asked.most)
        for choice in range(self.asked.choices):
            await self.admit(entry(f"{self.id}-{place}", choice, self.asked.prompts[place], params))

    async def admit(self, entry: Entry) -> None:
        await self.ticket.admit(entry)
        self.let_in.append(entry)

    async def end(self, *outputs: int) -> None:
        """The choices have come to so many tokens each."""
        for entry, tokens in zip(self.let_in, outputs, strict=False):
            entry.tokens = [0] * tokens
            entry.read = tokens
        for entry in self.let_in:
            if entry.on_close is not None:
                entry.on_close()
        for task in self.tasks:
            task.cancel()
        self.ticket.close()
        await self.call.settle()


def entry(prompt: str, choice: int, tokens: int, params: SamplingParams | PoolingParams) -> Entry:
    """One choice of one prompt, as vLLM's front end hands it to the fleet client."""
    request = EngineCoreRequest(
        request_id=f"{choice}_{prompt}",
        prompt_token_ids=[0] * tokens,
        mm_features=None,
        sampling_params=params if isinstance(params, SamplingParams) else None,
        pooling_params=params if isinstance(params, PoolingParams) else None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=prompt,
    )
    return Entry(request)


@pytest.mark.parametrize(
    ("asked", "reserved", "outputs", "used"),
    [
        (Asked([20]), 30, [4], 24),
        (Asked([20], choices=2), 40, [4, 10], 34),
        (Asked([20, 30, 1]), 81, [1, 2, 3], 57),
        (Asked([20, 30], choices=3, most=5), 80, [1, 2, 3, 4, 5, 0], 65),
    ],
)
def test_all_prompts_and_choices_are_charged_in_one_claim_and_settled(
    asked: Asked, reserved: int, outputs: list[int], used: int
) -> None:
    async def main() -> None:
        model = Model()
        request = Request(model, asked)
        assert await request.start()
        assert model.limiter.claims == [(1, 0), (0, reserved)]
        assert (model.admission.running, await model.limiter.left()) == (
            len(outputs),
            (REQUESTS - 1, BUDGET - reserved),
        )
        await request.end(*outputs)
        assert (model.admission.running, await model.limiter.left()) == (0, (REQUESTS - 1, BUDGET - used))

    run(main())


@pytest.mark.parametrize(
    "asked", [Asked([20], choices=2, most=491), Asked([400, 400], most=101), Asked([1] * 8, 2, 63)]
)
def test_what_does_not_fit_as_a_whole_is_not_let_in_in_part(asked: Asked) -> None:
    async def main() -> None:
        model = Model()
        request = Request(model, asked)
        assert not await request.start()
        assert (request.let_in, request.refused.result().status) == ([], 429)
        assert (model.admission.running, await model.limiter.left()) == (0, (REQUESTS, BUDGET))

    run(main())


@pytest.mark.parametrize("asked", [Asked([20], choices=2), Asked([20, 20])])
def test_what_has_no_place_as_a_whole_is_not_let_in_in_part(asked: Asked) -> None:
    async def main() -> None:
        model = Model(places=2)
        first, waiting = Request(model, Asked([1])), Request(model, Asked([1, 1]))
        assert await first.start()
        start = asyncio.create_task(waiting.start())
        await settle()
        assert model.admission.waiting == 1
        request = Request(model, asked)
        assert not await request.start()
        assert (request.let_in, request.refused.result().status) == ([], 503)
        await first.end(1)
        assert await start
        await waiting.end(1, 1)
        assert (model.admission.running, await model.limiter.left()) == (0, (REQUESTS - 2, BUDGET - 2 - 4))

    run(main())


def test_a_client_that_leaves_before_all_prompts_are_counted_leaves_nothing_behind() -> None:
    async def main() -> None:
        model = Model()
        request = Request(model, Asked([20, 30]))
        await request.open()
        request.tasks = [asyncio.create_task(request._generate(0))]
        await settle()
        assert model.limiter.claims == [(1, 0)]
        await request.end()
        assert (request.let_in, model.admission.running, await model.limiter.left()) == ([], 0, (REQUESTS - 1, BUDGET))

    run(main())


def test_places_that_were_not_taken_or_not_left_are_given_back() -> None:
    async def main() -> None:
        model = Model()
        request = Request(model, Asked([20], choices=2))
        await request.open()
        await request.admit(entry("p", 0, 20, SamplingParams(max_tokens=10)))
        assert model.admission.running == 2
        request.ticket.close()
        assert model.admission.running == 0

    run(main())


@pytest.mark.parametrize(("choices", "context", "most"), [(1, None, 900), (2, None, 450), (3, None, 300), (3, 110, 10)])
def test_an_answer_of_open_length_gets_its_part_of_what_the_key_may_use(
    choices: int, context: int | None, most: int
) -> None:
    async def main() -> None:
        model = Model()
        request = Request(model, Asked([100], choices, most=4000, bounded=False), context)
        assert await request.start()
        assert [entry.most_tokens for entry in request.let_in] == [most] * choices
        assert model.limiter.claims[1] == (0, 100 + choices * most)

    run(main())


def test_texts_to_embed_are_charged_as_they_come_and_share_a_place() -> None:
    async def main() -> None:
        model = Model()
        request = Request(model, Asked([]))
        await request.open(expected=1)
        texts = [entry(f"t{n}", 0, 50, PoolingParams(task="embed")) for n in range(10)]
        request.tasks = [asyncio.create_task(request.admit(text)) for text in texts]
        await asyncio.gather(*request.tasks)
        assert (len(request.let_in), model.admission.running) == (10, 1)
        assert sum(tokens for _, tokens in model.limiter.claims) == 500
        assert len(model.limiter.claims) <= 3
        await request.end()
        assert (model.admission.running, await model.limiter.left()) == (0, (REQUESTS - 1, BUDGET - 500))

    run(main())


def test_pieces_of_speech_beyond_the_first_are_charged_and_let_in_by_themselves() -> None:
    async def main() -> None:
        model = Model()
        request = Request(model, Asked([]))
        await request.open(expected=1)
        for number in range(3):
            await request.admit(entry(f"p{number}", 0, 50, SamplingParams(max_tokens=10)))
        assert (model.limiter.claims, model.admission.running) == ([(1, 0), (0, 60), (0, 60), (0, 60)], 3)
        request.tasks = []
        await request.end(1, 2, 3)
        assert (model.admission.running, await model.limiter.left()) == (0, (REQUESTS - 1, BUDGET - 156))

    run(main())


def test_an_overload_is_known_before_any_prompt_has_become_tokens_and_costs_nothing() -> None:
    async def main() -> None:
        model = Model(places=1)
        running, waiting = Request(model, Asked([1])), Request(model, Asked([1]))
        await running.start()
        start = asyncio.create_task(waiting.start())
        await settle()
        assert model.admission.waiting == 1
        claimed = len(model.limiter.claims)
        request = Request(model, Asked([1]))
        await request.open()
        with pytest.raises(Overloaded):
            request.ticket.check()
        await request.call.settle()
        assert model.limiter.claims[claimed:] == [(1, 0)]
        assert await model.limiter.left() == (REQUESTS - 2, BUDGET - 22)
        await running.end(1)
        assert await start

    run(main())


asked = st.builds(
    Asked,
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 200),
)


@given(waves=st.lists(st.lists(st.tuples(asked, st.data()), min_size=1, max_size=6), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_clients_that_race_never_exceed_the_budget(waves: list[list[tuple[Asked, st.DataObject]]]) -> None:
    """Each wave races for what the waves before have left, and then some of its requests end."""

    async def main() -> None:
        model, held, used, passed = Model(), 0, 0, 0
        for wave in waves:
            requests = [Request(model, asked) for asked, _ in wave]
            let_in = await asyncio.gather(*(request.start() for request in requests))
            passed += sum(let_in)
            held += sum(reserved(asked) for (asked, _), passes in zip(wave, let_in, strict=True) if passes)
            assert held + used <= BUDGET
            assert await model.limiter.left() == (REQUESTS - passed, BUDGET - held - used)
            for request, (asked, data), passes in zip(requests, wave, let_in, strict=True):
                if passes and data.draw(st.booleans()):
                    outputs = [data.draw(st.integers(0, asked.most)) for _ in request.let_in]
                    await request.end(*outputs)
                    held -= reserved(asked)
                    used += sum(asked.prompts) + sum(outputs)
            assert await model.limiter.left() == (REQUESTS - passed, BUDGET - held - used)

    run(main())


def reserved(asked: Asked) -> int:
    return sum(asked.prompts) + len(asked.prompts) * asked.choices * asked.most


def test_the_deadlines_of_tokens_run_from_when_the_model_has_a_replica_again() -> None:
    async def main() -> None:
        model = Model()
        model.up_since = None
        request = Request(model, Asked([5]))
        assert await request.start()
        [waiting] = request.let_in
        waiting.begin()  # the call is made, and waits in Serve's router
        assert (request.ticket.dispatched, request.ticket.loading) == (None, True)
        model.up_since = waiting.dispatched_at + 90
        assert (request.ticket.dispatched, request.ticket.loading) == (waiting.dispatched_at + 90, False)
        waiting.tokens = [1]
        waiting.last_token_at = model.up_since + 1
        assert request.ticket.token == model.up_since + 1
        model.up_since += 200  # its replica died, and another has taken its place
        assert request.ticket.token == model.up_since
        await request.end()

    run(main())


@pytest.mark.parametrize("seen_at", [90, None])
def test_the_wait_for_a_replica_is_not_taken_for_the_usual_time_of_an_answer(seen_at: float | None) -> None:
    async def main() -> None:
        model = Model(places=1)
        model.up_since = None
        request = Request(model, Asked([5]))
        assert await request.start()
        await asyncio.sleep(90)
        model.up_since = seen_at  # None: the token comes before the gateway has heard of the replica
        await asyncio.sleep(1)
        [answer] = request.let_in
        assert answer.on_first_token is not None
        answer.on_first_token()
        deadline = asyncio.get_running_loop().time() + 5
        await request.end(1)
        model.admission.check("other", "normal", deadline)
        [running] = await model.admission.enter("other", "normal", [15])
        model.admission.check("other", "normal", deadline)  # the place is taken, and will be free in time
        running.leave()

    run(main())
