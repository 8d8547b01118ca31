"""Settings of the gateway deployment."""

import os
from collections.abc import Mapping

from pydantic import Field, PositiveInt

from serve_app.fleet.settings import FailoverConfig
from serve_app.gateway.admission import AdmissionConfig
from serve_app.gateway.cors import parse_origins
from serve_app.gateway.deadlines import DeadlinesConfig
from serve_app.gateway.keys.keyring import Keyring, KeysConfig
from serve_app.gateway.limits.config import LimitsConfig
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.ledger.settings import LedgerConfig, database_url
from serve_app.settings import Closed


class GatewayConfig(Closed):
    """The gateway deployment."""

    replicas: PositiveInt = 1
    """Gateway processes, each with its own journal."""
    num_cpus: float = Field(default=0, ge=0)
    """Logical CPUs that one gateway reserves."""
    max_ongoing_requests: PositiveInt = 4096
    """Open requests a gateway holds at once."""
    drain_timeout_s: float = Field(default=660, ge=0)
    """Seconds a gateway that is being stopped may go on with the requests it has, which cannot move; the longest
    request (`deadlines.total_s`) should have them."""
    keys: KeysConfig = KeysConfig()
    """Who may use the service."""
    limits: LimitsConfig = LimitsConfig()
    """How much each key may use."""
    policy: PolicyConfig = PolicyConfig()
    """What a request may ask for."""
    admission: AdmissionConfig = AdmissionConfig()
    """The queue in front of each model."""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    """How long an answer may take."""
    failover: FailoverConfig = FailoverConfig()
    """What becomes of requests whose replica is lost."""
    ledger: LedgerConfig = LedgerConfig()
    """Where the usage of each request is written."""


def check_gateway(config: GatewayConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError if a gateway with these settings could not start in this environment."""
    Keyring(config.keys, environment)
    config.limits.quota(environment)
    config.limits.redis_url(environment)
    database_url(config.ledger, environment)
    parse_origins(environment.get("CORS_ORIGINS", ""))
