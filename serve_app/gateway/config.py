"""Settings of the gateway deployment."""

from pydantic import Field, PositiveInt

from serve_app.settings import Closed


class GatewayConfig(Closed):
    """The gateway deployment."""

    replicas: PositiveInt = 1
    """Gateway processes, each with its own journal."""
    num_cpus: float = Field(default=0, ge=0)
    """Logical CPUs that one gateway reserves."""
    max_ongoing_requests: PositiveInt = 4096
    """Open requests a gateway holds at once."""
    busy_from: PositiveInt = 16
    """Open requests of a model from which on a chunk of a stream carries two tokens instead of one."""
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """Largest request body."""
