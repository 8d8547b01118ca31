"""vLLM's engine protocol: the names that fleet and replica speak, each imported here and nowhere else.

Source: vllm/v1/engine/__init__.py, core_client.py and serial_utils.py of vLLM 0.32. They are vLLM's own
internals; tests/unit/test_vllm_contract.py fails when a pinned version changes them.
"""

from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor import Executor
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

__all__ = [
    "EngineCoreClient",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "EngineCoreRequest",
    "EngineDeadError",
    "Executor",
    "FinishReason",
    "MsgpackDecoder",
    "MsgpackEncoder",
    "SamplingParams",
    "SchedulerStats",
    "VllmConfig",
]
