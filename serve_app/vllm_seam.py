"""vLLM's engine protocol: the names that fleet and replica speak, each imported here and nowhere else.

Source: vllm/v1/engine/__init__.py, core_client.py and serial_utils.py of vLLM 0.32. They are vLLM's own
internals; tests/unit/test_vllm_contract.py fails when a pinned version changes them.
"""

from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams, SamplingType
from vllm.tasks import POOLING_TASKS, SupportedTask
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor, RequestState
from vllm.v1.executor import Executor
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

__all__ = [
    "POOLING_TASKS",
    "EngineCoreClient",
    "EngineCoreEvent",
    "EngineCoreEventType",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "EngineCoreRequest",
    "EngineDeadError",
    "Executor",
    "FinishReason",
    "LoRARequest",
    "LogprobsLists",
    "MsgpackDecoder",
    "MsgpackEncoder",
    "PoolingParams",
    "PrefillStats",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingType",
    "SchedulerStats",
    "SupportedTask",
    "VllmConfig",
    "cached_tokenizer_from_config",
]


def restart_output(processor: OutputProcessor, request: EngineCoreRequest) -> None:
    """Have vLLM's front end forget what it has of an answer of which it has passed nothing on."""
    state = processor.request_states.get(request.request_id)
    if state is not None:
        processor.request_states[request.request_id] = RequestState.from_new_request(
            tokenizer=processor.tokenizer,
            request=request,
            prompt=state.prompt,
            parent_req=state.parent_req,
            request_index=state.request_index,
            queue=state.queue,
            log_stats=processor.log_stats,
            stream_interval=processor.stream_interval,
        )
