"""vLLM flags that the service sets itself; a model file may not contradict it."""

OWNED_FLAGS = frozenset(
    {
        "api_key",
        "api_server_count",
        "config",
        "data_parallel_size",
        "disable_log_stats",
        "distributed_executor_backend",
        "headless",
        "host",
        "lora_modules",
        "model",
        "model_tag",
        "mm_processor_cache_gb",
        "pipeline_parallel_size",
        "port",
        "served_model_name",
        "tensor_parallel_size",
        "uds",
    }
)
