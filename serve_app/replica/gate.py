"""The gate to an engine core: requests under suspicion pass it so that its death shows which of them is to blame."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from serve_app.fleet.suspicion import Suspicion


class Gate:
    """Lets in either requests that are suspected together, or one alone. Those together go first."""

    def __init__(self) -> None:
        self._together = 0  # inside, or on their way
        self._alone = False
        self._opened = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def entered(self, suspicion: Suspicion) -> AsyncIterator[None]:
        """Wait until a request may enter, and keep others out for the length of the block as it demands."""
        together = suspicion is Suspicion.TOGETHER
        self._together += together
        entered = False
        try:
            async with self._opened:
                await self._opened.wait_for(lambda: not self._alone and (together or not self._together))
                self._alone, entered = not together, True
            yield
        finally:
            self._together -= together
            if entered and not together:
                self._alone = False
            async with self._opened:
                self._opened.notify_all()
