"""One answer from request to last token: the stream, the screen and the clock brought together."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from cli.client import Client
from cli.conversation import Answer
from cli.render import View

FRAME = 1 / 12  # seconds


async def take_turn(client: Client, body: Mapping[str, Any], view: View) -> Answer:
    """Stream one answer into the view and return it.

    Cancelling (Ctrl+C) closes the stream, which stops the generation, and returns what came until then.
    Raises ServiceError when the service refuses before the first token.
    """
    answer = Answer(asked=time.perf_counter())
    with view:
        drawing = asyncio.create_task(_draw(view))
        try:
            async with aclosing(client.stream(body)) as events:
                async for event in events:
                    answer.note(event, time.perf_counter())
                    view.show(event)
        except asyncio.CancelledError:
            answer.interrupted = True
        finally:
            drawing.cancel()
    return answer


async def _draw(view: View) -> None:
    while True:
        view.refresh()
        await asyncio.sleep(FRAME)
