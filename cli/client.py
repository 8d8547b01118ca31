"""The typed client of the service: every HTTP call of the program, every failure turned into one line."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec

from cli.errors import ModelUnknownError, ServiceError, UnreachableError
from cli.events import Event, EventReader, Failure
from cli.refusals import foreign, refusal
from cli.replies import Health, Model, ModelCard, ModelCards, Usage
from cli.settings import Settings

READ_SECONDS = 300.0  # a long prompt may wait and prefill for minutes before its first byte
TIMEOUT = httpx.Timeout(30, connect=10, read=READ_SECONDS)


class Client:
    """An open connection pool to one service. Every method raises ServiceError, and only that."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=TIMEOUT, trust_env=not settings.is_local)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[Model]:
        """Return the served models, with tasks and state where `/api/healthz` tells them."""
        cards, health = await asyncio.gather(self._cards(), self._health_or_none())
        known = {model.id: model for model in health.details.models} if health else {}
        return [Model.of(card, known.get(card.id)) for card in cards]

    async def health(self) -> Health:
        """Return the health of the service, whether it can answer or not."""
        with self._translated():
            response = await self._http.get(f"{self._settings.root_url}/api/healthz")
        try:
            return msgspec.json.decode(response.content, type=Health)
        except msgspec.DecodeError:
            raise ServiceError(
                f"{self._settings.root_url} answered {response.status_code}, but not with its health.",
                "Check that OPENAI_BASE_URL points at this service.",
            ) from None

    async def usage(self, query: Mapping[str, str]) -> Usage:
        """Return what `/api/usage` says to the query."""
        with self._translated():
            response = await self._http.get(f"{self._settings.root_url}/api/usage", params=query)
        if response.status_code == 404:
            raise ServiceError(f"{self._settings.root_url} keeps no usage ledger.", "Its operator can switch it on.")
        if response.status_code != 200:
            raise refusal(response, self._settings)
        try:
            return msgspec.json.decode(response.content, type=Usage)
        except msgspec.DecodeError:
            raise foreign(response) from None

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[Event, None]:
        """Yield the events of one answer; a failure before the first raises, a later one is a Failure."""
        url = f"{self._settings.base_url}/chat/completions"
        with self._translated():
            async with self._http.stream("POST", url, json=dict(body)) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise await self._with_names(refusal(response, self._settings), str(body["model"]))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise foreign(response)
                async for event in _events(response):
                    yield event

    async def _with_names(self, error: ServiceError, name: str) -> ServiceError:
        if not isinstance(error, ModelUnknownError):
            return error
        return ModelUnknownError.among(name, [card.id for card in await self._cards()])

    async def _cards(self) -> list[ModelCard]:
        with self._translated():
            response = await self._http.get(f"{self._settings.base_url}/models")
        if response.status_code != 200:
            raise refusal(response, self._settings)
        try:
            return msgspec.json.decode(response.content, type=ModelCards).data
        except msgspec.DecodeError:
            raise foreign(response) from None

    async def _health_or_none(self) -> Health | None:
        try:
            return await self.health()
        except ServiceError:
            return None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The boundary where httpx's exceptions become ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            start = "Start the service with `make run`" if self._settings.is_local else "Check the network"
            raise UnreachableError(
                f"Nothing answers at {self._settings.root_url}.",
                f"{start}, or point OPENAI_BASE_URL at one that runs.",
            ) from None
        except httpx.TimeoutException:
            raise UnreachableError("The service took the request and then kept silent.", "Try again.") from None
        except httpx.HTTPError:
            raise UnreachableError("The service closed the connection without an answer.", "Try again.") from None


async def _events(response: httpx.Response) -> AsyncIterator[Event]:
    """Yield events up to Done or Failure; a connection lost on the way is a Failure too."""
    reader = EventReader()
    try:
        async for chunk in response.aiter_bytes():
            for event in reader.feed(chunk):
                yield event
            if reader.ended:
                return
    except httpx.TimeoutException:
        yield Failure(f"nothing came for {READ_SECONDS:.0f} s")
        return
    except httpx.TransportError:
        pass  # the reader knows whether the answer was complete
    for event in reader.close():
        yield event
