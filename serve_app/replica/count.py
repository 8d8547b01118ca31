"""How many replicas a model has: a fixed number, or a range within which Serve chooses by the model's load."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from serve_app.settings import Closed

POLICY = "serve_app.fleet.scaling:LoadPolicy"
# How often load is measured and told to Serve's controller, and over how long it takes the mean.
MEASURE_S = 2.0
MEAN_OVER_S = 10.0


class ReplicaRange(Closed):
    """Between how many replicas Serve chooses, and by what."""

    min: NonNegativeInt
    """Fewest replicas; 0: an unused model has none, and its next request waits while one loads."""
    max: PositiveInt
    """Most replicas."""
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Requests that a replica should have at a time: at most, and with null, 80 % of those it computes at once
    (`max_num_seqs`)."""
    target_kv_cache_usage: float = Field(default=0.8, gt=0, le=1)
    """Share of its KV cache that a replica should use."""
    up_after_s: float = Field(default=10, ge=0)
    """Seconds that more replicas must have been wanted before they start."""
    down_after_s: float = Field(default=300, ge=0)
    """Seconds that fewer replicas must have been wanted before one stops; the last one of a `min: 0` too."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self

    @property
    def fixed(self) -> bool:
        """Whether the number never changes."""
        return self.min == self.max

    @property
    def least_running(self) -> int:
        """Replicas that a model in use has at least."""
        return max(self.min, 1)

    def options(self) -> dict[str, Any]:
        """The same in Serve's words."""
        if self.fixed:
            return {"num_replicas": self.max}
        targets = {"ongoing": self.target_ongoing_requests, "kv_cache_usage": self.target_kv_cache_usage}
        return {
            "autoscaling_config": {
                "min_replicas": self.min,
                "max_replicas": self.max,
                "upscale_delay_s": self.up_after_s,
                "downscale_delay_s": self.down_after_s,
                "metrics_interval_s": MEASURE_S,
                "look_back_period_s": MEAN_OVER_S,
                "policy": {"policy_function": POLICY, "policy_kwargs": targets},
            }
        }


def _as_range(value: Any) -> Any:
    return {"min": value, "max": value} if isinstance(value, int) and not isinstance(value, bool) else value


ReplicaCount = Annotated[ReplicaRange, BeforeValidator(_as_range)]
"""Written as a number or as a range."""
