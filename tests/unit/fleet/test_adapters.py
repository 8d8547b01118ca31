"""LoRA adapters below vLLM's front end: each has one number, whatever else is listed beside it."""

import asyncio

from serve_app.config import ModelConfig
from serve_app.fleet.adapters import adapter_number
from serve_app.replica.arguments import engine_config
from tests.unit.fleet.bed import running_bed, until


async def test_an_adapter_has_the_number_by_which_replicas_have_loaded_it(model: ModelConfig) -> None:
    adapted = model.model_copy(update={"adapters": {"new": "/new", "law": "/law"}})
    async with running_bed(engine_config(adapted), adapted, replicas=1) as bed:
        messages = [{"role": "user", "content": "[[answer: one two]] [[pace: 20ms]]"}]
        asked = asyncio.create_task(bed.client.chat.completions.create(model="law", messages=messages))  # type: ignore[call-overload]
        await until(lambda: bed.entries, "the request")
        adapter = bed.entries[0].attempt_request().lora_request
        assert (adapter.lora_name, adapter.lora_path, adapter.lora_int_id) == ("law", "/law", adapter_number("law"))
        assert (await asked).model == "law"


def test_numbers_are_of_31_bits_and_no_two_alike() -> None:
    numbers = {adapter_number(f"adapter-{number}") for number in range(500)}
    assert len(numbers) == 500
    assert min(numbers) >= 2**30
    assert max(numbers) < 2**31
