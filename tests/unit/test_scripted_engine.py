"""The scripted engine through its own door, its messages sent through vLLM's encoder and output processor."""

import asyncio
import multiprocessing
import signal
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike, cached_tokenizer_from_config
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serve_app.config import DEMO_MODEL
from serve_app.replica.scripted import ScriptedEngine

PATIENCE = 20.0  # seconds


@pytest.fixture(scope="module")
def config() -> VllmConfig:
    arguments = EngineArgs(str(DEMO_MODEL), max_model_len=512, max_num_seqs=2, enforce_eager=True)
    return arguments.create_engine_config()


@pytest.fixture(scope="module")
def tokenizer(config: VllmConfig) -> TokenizerLike:
    return cached_tokenizer_from_config(config.model_config)


@pytest.fixture
def engine(config: VllmConfig) -> ScriptedEngine:
    return ScriptedEngine(config)


def chat(tokenizer: TokenizerLike, *turns: str) -> list[int]:
    """A prompt as the chat template renders it, user and assistant by turns."""
    roles = ["user", "assistant"] * len(turns)
    text = "".join(f"<|im_start|>{role}\n{turn}<|im_end|>\n" for role, turn in zip(roles, turns, strict=False))
    return tokenizer.encode(f"{text}<|im_start|>assistant\n")


def request_for(prompt: list[int], request_id: str = "r", **sampling: Any) -> EngineCoreRequest:
    params = SamplingParams(**{"max_tokens": 20, "output_kind": RequestOutputKind.DELTA} | sampling)
    params.update_from_generation_config({}, eos_token_id=2)  # <|im_end|>
    return new_request(request_id, prompt, sampling_params=params)


def new_request(
    request_id: str,
    prompt: list[int],
    sampling_params: SamplingParams | None = None,
    pooling_params: PoolingParams | None = None,
) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=sampling_params,
        pooling_params=pooling_params,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=request_id,
    )


async def step(engine: ScriptedEngine) -> EngineCoreOutputs:
    """One step, after the journey through vLLM's encoder that it makes in the service."""
    async with asyncio.timeout(PATIENCE):
        message = await engine.get_output_async()
    decoded: EngineCoreOutputs = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(message))
    return decoded


async def outputs_of(engine: ScriptedEngine, request: EngineCoreRequest) -> AsyncIterator[EngineCoreOutput]:
    """The outputs of a request that is alone in the engine, to its end."""
    await engine.add_request_async(request)
    finished = False
    while not finished:
        (output,) = (await step(engine)).outputs
        finished = output.finished
        yield output


async def answer_of(engine: ScriptedEngine, prompt: list[int], **sampling: Any) -> list[int]:
    outputs = outputs_of(engine, request_for(prompt, **sampling))
    return [token async for output in outputs for token in output.new_token_ids]


async def last_of(engine: ScriptedEngine, prompt: list[int], **sampling: Any) -> EngineCoreOutput:
    return [output async for output in outputs_of(engine, request_for(prompt, **sampling))][-1]


async def test_an_answer_is_the_same_words_every_time(engine: ScriptedEngine, tokenizer: TokenizerLike) -> None:
    prompt = chat(tokenizer, "Hello")
    answer = await answer_of(engine, prompt)
    assert len(answer) == 20
    assert await answer_of(engine, prompt) == answer
    assert len(set(answer)) > 10
    assert all(word.isalpha() for word in tokenizer.decode(answer).split())


async def test_one_other_token_in_the_prompt_changes_every_token_of_the_answer(
    engine: ScriptedEngine, tokenizer: TokenizerLike
) -> None:
    prompt = chat(tokenizer, "Hello")
    other = [prompt[0] + 5, *prompt[1:]]
    pairs = zip(await answer_of(engine, prompt), await answer_of(engine, other), strict=True)
    assert sum(one == two for one, two in pairs) <= 2  # two words of some hundred may meet by chance


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        "[[answer: One, two, three: go!]]",
        "[[answer: aaaa aaaa aaaa]]",
        "[[answer: go on]] [[die after: 500]]",
    ],
)
async def test_a_request_resumed_at_any_token_ends_as_if_undisturbed(
    config: VllmConfig, tokenizer: TokenizerLike, text: str
) -> None:
    for prompt in (
        chat(tokenizer, text),
        chat(tokenizer, "Hi", "hello", text),
        tokenizer.encode(f"Say: {text}"),
    ):
        whole = await answer_of(ScriptedEngine(config), prompt, max_tokens=30)
        for cut in range(len(whole)):
            engine = ScriptedEngine(config)
            assert await answer_of(engine, prompt + whole[:cut], max_tokens=30 - cut) == whole[cut:]


@settings(max_examples=40, deadline=None)
@given(prompt=st.lists(st.integers(0, 1023), min_size=1, max_size=30), cut=st.integers(0, 11))
def test_any_prompt_resumes(config: VllmConfig, prompt: list[int], cut: int) -> None:
    async def both() -> tuple[list[int], list[int]]:
        engine = ScriptedEngine(config)
        whole = await answer_of(engine, prompt, max_tokens=12)
        rest = await answer_of(engine, prompt + whole[:cut], max_tokens=12 - cut)
        return whole, whole[:cut] + rest

    whole, resumed = asyncio.run(both())
    assert resumed == whole


@pytest.mark.parametrize(
    "answer", ["Yes.", '<tool_call>\n{"name": "f", "arguments": {"a": [[1], 2]}}\n</tool_call>', "[1]"]
)
async def test_the_answer_directive_gives_this_text_and_the_end(
    engine: ScriptedEngine, tokenizer: TokenizerLike, answer: str
) -> None:
    outputs = [
        o async for o in outputs_of(engine, request_for(chat(tokenizer, f"[[answer: {answer}]]"), max_tokens=99))
    ]
    tokens = [token for output in outputs for token in output.new_token_ids]
    assert tokenizer.decode(tokens) == f"{answer}<|im_end|>"
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == (FinishReason.STOP, None)


async def test_directives_of_earlier_turns_have_no_effect(engine: ScriptedEngine, tokenizer: TokenizerLike) -> None:
    answer = await answer_of(engine, chat(tokenizer, "[[answer: old]] [[fail after: 3]]", "old", "And now?"))
    assert len(answer) == 20


async def test_an_answer_ends_at_max_tokens_and_at_the_context(engine: ScriptedEngine) -> None:
    last = await last_of(engine, [5, 6, 7], max_tokens=3)
    assert last.finish_reason is FinishReason.LENGTH
    assert len(await answer_of(engine, [5] * 500, max_tokens=100)) == 12  # of 512


async def test_a_stop_token_ends_an_answer_but_not_before_min_tokens(engine: ScriptedEngine) -> None:
    answer = await answer_of(engine, [5, 6, 7])
    place = next(at for at in range(3, 20) if answer[at] not in answer[:at])
    last = await last_of(engine, [5, 6, 7], stop_token_ids=[answer[place]])
    assert (last.finish_reason, last.stop_reason, last.new_token_ids) == (
        FinishReason.STOP,
        answer[place],
        [answer[place]],
    )
    early = await answer_of(engine, [5, 6, 7], stop_token_ids=[answer[0]], min_tokens=20)
    assert early == answer


async def test_ignore_eos_and_min_tokens_keep_a_fixed_answer_going(
    engine: ScriptedEngine, tokenizer: TokenizerLike
) -> None:
    prompt = chat(tokenizer, "[[answer: Yes.]]")
    fixed = tokenizer.encode("Yes.", add_special_tokens=False)
    endless = await answer_of(engine, prompt, ignore_eos=True)
    assert endless[: len(fixed)] == fixed
    assert len(endless) == 20
    assert await answer_of(engine, prompt, min_tokens=10) == [*endless[:10], 2]


async def test_more_requests_than_seats_wait_their_turn(engine: ScriptedEngine) -> None:
    for name in "abc":
        await engine.add_request_async(request_for([5, 6, 7], name, max_tokens=2))
    seen = []
    for _ in range(4):
        message = await step(engine)
        assert message.scheduler_stats is not None
        counts = (message.scheduler_stats.num_running_reqs, message.scheduler_stats.num_waiting_reqs)
        seen.append(([output.request_id for output in message.outputs], counts))
    assert seen == [(["a", "b"], (2, 1)), (["a", "b"], (1, 0)), (["c"], (1, 0)), (["c"], (0, 0))]


async def test_an_abort_is_seen_in_the_counts_at_once(engine: ScriptedEngine) -> None:
    await engine.add_request_async(request_for([5, 6, 7]))
    await step(engine)
    await engine.abort_requests_async(["r", "unknown"])
    message = await step(engine)
    assert message.outputs == []
    assert message.scheduler_stats is not None
    assert message.scheduler_stats.num_running_reqs == 0


async def test_an_idle_engine_waits_for_a_request(engine: ScriptedEngine) -> None:
    waiting = asyncio.create_task(step(engine))
    await asyncio.sleep(0)
    assert not waiting.done()
    await engine.add_request_async(request_for([5, 6, 7]))
    assert len((await waiting).outputs) == 1


async def test_a_slow_request_does_not_hold_up_the_others(engine: ScriptedEngine, tokenizer: TokenizerLike) -> None:
    await engine.add_request_async(request_for(chat(tokenizer, "[[pace: 60000ms]]"), "slow"))
    await engine.add_request_async(request_for(chat(tokenizer, "[[pace: 1ms]]"), "quick", max_tokens=3))
    order = [output.request_id for _ in range(3) for output in (await step(engine)).outputs]
    assert order == ["quick"] * 3


@pytest.mark.parametrize("count", [0, 1, 5, -1])
async def test_vllms_output_processor_takes_text_and_logprobs(
    engine: ScriptedEngine, tokenizer: TokenizerLike, count: int
) -> None:
    processor = OutputProcessor(tokenizer, log_stats=False)
    request = request_for(chat(tokenizer, "[[answer: Grüße!]]"), logprobs=count, max_tokens=99)
    processor.add_request(request, prompt=None)
    text, logprobs = "", []
    async for output in outputs_of(engine, request):
        (result,) = processor.process_outputs([output]).request_outputs
        text += result.outputs[0].text
        logprobs += result.outputs[0].logprobs or []
    assert text == "Grüße!"
    assert result.outputs[0].finish_reason == "stop"
    tokens = [*tokenizer.encode("Grüße!", add_special_tokens=False), 2]
    assert len(logprobs) == len(tokens)
    for token, entry in zip(tokens, logprobs, strict=True):
        assert (entry[token].logprob, entry[token].rank) == (-0.25, 1)
        assert len(entry) == max(1, count) if count >= 0 else len(entry) > 100


async def test_stop_strings_are_found_above_the_engine(engine: ScriptedEngine, tokenizer: TokenizerLike) -> None:
    processor = OutputProcessor(tokenizer, log_stats=False)
    request = request_for(chat(tokenizer, "[[answer: one two three four]]"), stop=["three"])
    processor.add_request(request, prompt=None)
    text = ""
    async for output in outputs_of(engine, request):
        processed = processor.process_outputs([output])
        text += "".join(result.outputs[0].text for result in processed.request_outputs)
        if processed.reqs_to_abort:
            break
    assert text == "one two "
    assert processed.reqs_to_abort == ["r"]


async def test_the_first_output_tells_what_metrics_need(engine: ScriptedEngine) -> None:
    first, second, *_ = [output async for output in outputs_of(engine, request_for([5, 6, 7]))]
    assert first.prefill_stats is not None
    assert first.prefill_stats.num_computed_tokens == 3
    assert [event.type.name for event in first.events or []] == ["QUEUED", "SCHEDULED"]
    assert (second.prefill_stats, second.events) == (None, None)


async def test_an_embedding_depends_on_the_prompt_alone(engine: ScriptedEngine) -> None:
    async def embed(prompt: list[int], dimensions: int | None = None) -> list[float]:
        params = PoolingParams(task="embed", dimensions=dimensions)
        (output,) = [o async for o in outputs_of(engine, new_request("r", prompt, pooling_params=params))]
        assert output.pooling_output is not None
        return list(output.pooling_output.tolist())

    one = await embed([5, 6])
    assert len(one) == 256
    assert sum(x * x for x in one) == pytest.approx(1.0)
    assert await embed([5, 6]) == one
    assert await embed([5, 7]) != one
    assert len(await embed([5, 6], dimensions=16)) == 16


async def test_a_failing_request_leaves_the_others_alone(engine: ScriptedEngine, tokenizer: TokenizerLike) -> None:
    last = await last_of(engine, chat(tokenizer, "[[fail]]"))
    assert (last.finish_reason, last.new_token_ids) == (FinishReason.ERROR, [])
    outputs = [o async for o in outputs_of(engine, request_for(chat(tokenizer, "[[fail after: 3]]")))]
    assert [output.finished for output in outputs] == [False, False, False, True]
    assert len(await answer_of(engine, [5, 6, 7])) == 20


async def test_a_dead_engine_says_so_at_every_door(engine: ScriptedEngine, tokenizer: TokenizerLike) -> None:
    await engine.add_request_async(request_for(chat(tokenizer, "[[engine dies after: 2]]")))
    await step(engine)
    await step(engine)
    assert not engine.resources.engine_dead
    with pytest.raises(EngineDeadError):
        await step(engine)
    assert engine.resources.engine_dead
    with pytest.raises(EngineDeadError):
        await engine.get_output_async()
    with pytest.raises(EngineDeadError):
        await engine.add_request_async(request_for([5, 6, 7]))


@pytest.mark.parametrize("fault", ["engine dies", "fail"])
async def test_a_resumed_request_is_past_its_fault(
    engine: ScriptedEngine, config: VllmConfig, tokenizer: TokenizerLike, fault: str
) -> None:
    prompt = chat(tokenizer, f"[[{fault} after: 4]]")
    await engine.add_request_async(request_for(prompt))
    delivered = [token for _ in range(4) for token in (await step(engine)).outputs[0].new_token_ids]
    rest = await answer_of(ScriptedEngine(config), prompt + delivered, max_tokens=16)
    assert len(rest) == 16


async def test_a_hung_engine_answers_no_more(engine: ScriptedEngine, tokenizer: TokenizerLike) -> None:
    await engine.add_request_async(request_for(chat(tokenizer, "[[hang after: 1]]")))
    await step(engine)
    hung = asyncio.create_task(engine.get_output_async())
    await engine.add_request_async(request_for([5, 6, 7], "other"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not hung.done()
    hung.cancel()


def test_a_dying_process_has_sent_the_tokens_before(config: VllmConfig, tokenizer: TokenizerLike) -> None:
    prompt = chat(tokenizer, "[[die after: 7]]")

    def live(sink: Connection) -> None:
        async def answer() -> None:
            async for output in outputs_of(ScriptedEngine(config), request_for(prompt)):
                sink.send(output.new_token_ids)

        asyncio.run(answer())

    source, sink = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=live, args=(sink,))
    process.start()
    sink.close()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    sent = []
    while source.poll():
        try:
            sent += source.recv()
        except EOFError:
            break
    assert len(sent) == 7


async def test_shutdown_ends_every_request(engine: ScriptedEngine) -> None:
    assert await engine.get_supported_tasks_async() == ("generate",)
    await engine.add_request_async(request_for([5, 6, 7]))
    engine.shutdown()
    await engine.add_request_async(request_for([5, 6, 7], "next", max_tokens=1))
    assert [output.request_id for output in (await step(engine)).outputs] == ["next"]
