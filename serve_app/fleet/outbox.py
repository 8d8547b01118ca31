"""Outputs on their way from the replicas to the front end."""

import asyncio
from collections import deque

import torch

from serve_app.vllm_seam import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason


class Outbox:
    """A queue of steps from which the outputs of one request can be taken back."""

    def __init__(self) -> None:
        self._steps: deque[EngineCoreOutputs] = deque()
        self._arrived = asyncio.Event()
        # The front end reads a large step in parts, and gives way to other tasks between them.
        self._handed = EngineCoreOutputs()

    def put(self, step: EngineCoreOutputs) -> None:
        self._steps.append(step)
        self._arrived.set()

    def put_end(self, request: EngineCoreRequest, finish_reason: FinishReason, stop_reason: int | None) -> None:
        """The end of a request that no replica ends."""
        output = EngineCoreOutput(request.request_id, [], finish_reason=finish_reason, stop_reason=stop_reason)
        if request.pooling_params is not None:
            # vLLM takes an output without one for generated, and its output handler dies of that.
            output.pooling_output = torch.empty(0)
        self.put(EngineCoreOutputs(outputs=[output]))

    async def get(self) -> EngineCoreOutputs:
        """The next step, once there is one."""
        while not self._steps:
            self._arrived.clear()
            await self._arrived.wait()
        self._handed = self._steps.popleft()
        return self._handed

    def take_back(self, request_id: str) -> None:
        """Make nobody's what the front end has not read of a request's outputs."""
        for step in (self._handed, *self._steps):
            for output in step.outputs:
                if output.request_id == request_id:
                    output.request_id = ""
