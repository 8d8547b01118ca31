"""The gateway's own app with its real keys, limits, policy and queue, before a front end that counts words."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from vllm.sampling_params import SamplingParams

from serve_app.config import load_model
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway.admission import Admission, AdmissionConfig
from serve_app.gateway.api import GatewayApp
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.inference import Inference
from serve_app.gateway.limits.headers import limit_headers
from serve_app.gateway.limits.limiter import UNITS, Decision, Level, Quota
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.requests import RequestLimits
from serve_app.gateway.models import Model, Models
from serve_app.gateway.policy.check import Policy, for_model
from serve_app.gateway.policy.settings import MediaBounds, PolicyConfig
from serve_app.gateway.replies import JSON, send_bytes
from serve_app.gateway.routes import MODEL_ROUTES
from serve_app.gateway.ticket import admit
from serve_app.ledger.usage import UsageReports
from serve_app.ray_seam import Replicas
from tests.unit.gateway.front_door import Watch
from tests.unit.gateway.test_ticket import entry
from tests.unit.keys.files import keyring, record, write

CHAT = "/v1/chat/completions"
TASKS = frozenset({CHAT, "/v1/completions", "/tokenize"})
KEYS = {
    "limited": {"limits": {"requests_per_minute": 100, "tokens_per_minute": 1000, "context": 500}},
    "narrow": {"limits": {"requests_per_minute": 2, "concurrent": 1}},
    "scoped": {"models": ["open*"], "endpoints": ["chat*", "models*"], "limits": {"requests_per_minute": 10}},
    "adapted": {"models": ["law"]},
    "all": {},
}


class Frontend:
    """Stands for vLLM's app: a prompt is as many tokens as it has words, and the answer is its whole length."""

    def __init__(self) -> None:
        self.paths = TASKS
        self.calls = 0
        self.models: list[str | None] = []
        """What each request names as its model."""
        self.let_in = asyncio.Event()
        self.admission = Admission(AdmissionConfig(max_waiting=0), 1)
        self.max_model_len = 4096
        self.reading = SimpleNamespace(check=lambda *_: None)
        self.answers = asyncio.Event()
        self.answers.set()

    @staticmethod
    def count_reasoning(_: object) -> int:
        return 0

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        body = json.loads((await receive())["body"])
        self.models.append(body.get("model"))
        params = SamplingParams(max_tokens=body["max_tokens"])
        words = len(body["messages"][0]["content"].split())
        entries = [entry("p", choice, words, params) for choice in range(body.get("n") or 1)]
        for each in entries:
            await admit(each)
            each.tokens = [0] * body["max_tokens"]
            each.read = len(each.tokens)
        self.let_in.set()
        await self.answers.wait()
        for each in entries:
            assert each.on_close is not None
            each.on_close()
        await send_bytes(200, b"{}", send, [JSON])


class Service:
    """Models: open, ready, with an adapter law; open-too, that loads; hidden, and hidden-vision, which takes images."""

    def __init__(self, folder: Path) -> None:
        records = [record(f"{name:0<10}", name, **rights) for name, rights in KEYS.items()]
        watch, opened = Watch(), []
        self.frontends = {name: Frontend() for name in ("open", "hidden", "hidden-vision")}
        for name in (*self.frontends, "open-too"):
            handle: Any = SimpleNamespace(deployment_name=name)
            watch[name] = Replicas(running=int(name in self.frontends))
            settings = {"id": name, "adapters": {"law": "/law"} if name == "open" else {}}
            model = Model(load_model("demo").model_copy(update=settings), handle)
            model.frontend = cast("Any", self.frontends.get(name))
            opened.append(model)
        models = Models(opened, {}, cast("FleetWatch", watch))
        policy = Policy(PolicyConfig(media=MediaBounds(models=("hidden-vision",))), b"secret")
        self.limiter = MemoryLimiter(30, lambda: 0)
        self.app = GatewayApp(
            models=models,
            keyring=keyring(write(folder / "keys.yaml", *records)),
            limits=RequestLimits(self.limiter, 30),
            quota=Quota(),
            inference=Inference(models, policy, None, GatewayConfig()),
            policy=policy,
            usage=UsageReports(None),
            registries=[],
        )

    async def slow_prefill(self) -> None:
        """Have the first token of `open` take long, so that a short deadline cannot be kept."""
        [slot] = await self.frontends["open"].admission.enter("other", "normal", [1])
        await asyncio.sleep(0.01)
        slot.first_token()
        slot.leave()

    async def ask(self, key: str, method: str = "POST", path: str = CHAT, **request: Any) -> httpx.Response:
        """One request, with the least body of a chat unless it says otherwise."""
        if method == "POST" and not request.keys() & {"content", "json"}:
            request["json"] = chat()
        headers = {"authorization": f"Bearer {key}", **request.pop("headers", {})}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://gateway") as client:
            return await client.request(method, path, headers=headers, **request)


def chat(words: int = 10, **fields: Any) -> dict[str, Any]:
    return {"model": "open", "messages": [{"role": "user", "content": "tea " * words}], "max_tokens": 5, **fields}


@pytest.fixture
async def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


SPEECH = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nopen\r\n--x--\r\n'
FILE = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("status", "code", "request_", "left"),
    [
        (200, None, {}, (98, 970)),
        (200, None, {"json": chat(n=2)}, (98, 965)),
        (200, None, {"method": "GET", "path": "/v1/models"}, (98, 985)),
        (200, None, {"method": "GET", "path": "/v1/models/open"}, (98, 985)),
        (400, "invalid_json", {"content": b"{"}, (98, 985)),
        (400, "invalid_value", {"json": chat(temperature=9)}, (98, 985)),
        (400, "unknown_parameter", {"json": chat(colour="red")}, (98, 985)),
        (400, "unsupported_parameter", {"path": "/v1/completions", "json": {"prompt": "a", "best_of": 2}}, (98, 985)),
        (400, "invalid_value", {"headers": {"x-request-deadline-ms": "soon"}}, (98, 985)),
        (400, "context_length_exceeded", {"json": chat(words=499)}, (98, 985)),
        (400, "invalid_value", {"path": "/v1/audio/translations", "content": SPEECH, "headers": MULTIPART}, (98, 985)),
        (404, "not_found", {"path": "/nowhere"}, (98, 985)),
        (404, "not_found", {"method": "GET", "path": "/nowhere"}, (98, 985)),
        (404, "model_not_found", {"json": chat(model="absent")}, (98, 985)),
        (404, "model_not_found", {"method": "GET", "path": "/v1/models/absent"}, (98, 985)),
        (404, "task_not_supported", {"path": "/v1/embeddings", "json": {"model": "open", "input": "tea"}}, (98, 985)),
        (405, "method_not_allowed", {"method": "GET"}, (98, 985)),
        (413, "request_too_large", {"content": b" " * 2**25}, (98, 985)),
        (415, "unsupported_media_type", {"headers": {"content-type": "text/plain"}}, (98, 985)),
        (429, "rate_limit_exceeded", {"json": chat(max_tokens=490, n=2)}, (99, 985)),
        (429, "rate_limit_exceeded", {"json": chat(max_tokens=490, n=3)}, (99, 985)),
        (503, "model_loading", {"json": chat(model="open-too")}, (98, 985)),
        (503, "server_is_overloaded", {"headers": {"x-request-deadline-ms": "1"}}, (98, 985)),
    ],
)
async def test_every_answer_tells_the_limits(
    service: Service, status: int, code: str | None, request_: dict[str, Any], left: tuple[int, int]
) -> None:
    await service.slow_prefill()
    await service.ask("limited")
    answer = await service.ask("limited", **request_)
    assert (answer.status_code, code and answer.json()["error"]["code"]) == (status, code)
    assert {name: value for name, value in answer.headers.items() if "ratelimit" in name} == dict(
        limit_headers(Decision(None, Level(100, left[0] * UNITS), Level(1000, left[1] * UNITS)))
    )
    told = answer.headers.keys() & {"retry-after", "retry-after-ms", "x-should-retry"}
    if status == 503:
        assert told == {"retry-after"}
    elif status != 429:
        assert told == set()
    elif request_["json"]["n"] == 2:
        assert told == {"retry-after", "retry-after-ms"}
        assert 300 <= int(answer.headers["retry-after-ms"]) <= 330
        assert answer.headers["retry-after"] == "1"
    else:
        assert told == {"x-should-retry"}
        assert answer.headers["x-should-retry"] == "false"


async def test_an_endpoint_out_of_scope_tells_the_limits_and_counts(service: Service) -> None:
    for remaining in ("9", "8"):
        answer = await service.ask("scoped", path="/v1/completions", json={"model": "open", "prompt": "tea"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
        assert answer.headers["x-ratelimit-remaining-requests"] == remaining


async def test_requests_and_places_that_are_used_up(service: Service) -> None:
    frontend = service.frontends["open"]
    frontend.answers.clear()
    running = asyncio.create_task(service.ask("narrow"))
    await frontend.let_in.wait()
    refused = await service.ask("narrow")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1000 <= int(refused.headers["retry-after-ms"]) <= 1100
    frontend.answers.set()
    assert (await running).status_code == 200
    assert (await service.ask("narrow")).status_code == 200
    refused = await service.ask("narrow")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 30_000 <= int(refused.headers["retry-after-ms"]) <= 33_000


LONG = "tea " * 10_000
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]


@pytest.mark.parametrize("hidden", ["hidden", "hidden-vision"])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {}),
        ("/api/chat", {}),
        (CHAT, {"temperature": 9}),
        (CHAT, {"colour": "red"}),
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
        (CHAT, {"max_tokens": 10**9}),
        (CHAT, {"messages": IMAGE}),
        (CHAT, {"messages": IMAGE, "max_tokens": 0}),
        (CHAT, {"user": "x" * 1_100_000}),
        ("/v1/completions", {"prompt": "tea"}),
        ("/v1/embeddings", {"input": "tea"}),
        ("/v1/rerank", {}),
        ("/tokenize", {"prompt": "tea"}),
    ],
)
async def test_a_model_out_of_scope_is_as_one_that_is_not_there(
    service: Service, hidden: str, path: str, fields: dict[str, Any]
) -> None:
    there = await service.ask("scoped", path=path, json=chat(**fields, model=hidden))
    absent = await service.ask("scoped", path=path, json=chat(**fields, model="absent"))
    assert (there.status_code, there.text.replace(hidden, "absent")) == (absent.status_code, absent.text)
    assert (there.status_code, there.json()["error"]["code"]) in {(404, "model_not_found"), (413, "request_too_large")}
    assert [frontend.calls for frontend in service.frontends.values()] == [0, 0, 0]


@pytest.mark.parametrize("sent", [{}, {"model": None}, {"model": "law"}])
async def test_a_key_for_an_adapter_gets_no_other_model_by_naming_none(service: Service, sent: dict[str, Any]) -> None:
    body = {name: value for name, value in chat().items() if name != "model"} | sent
    assert (await service.ask("adapted", json=body)).status_code == 200
    assert service.frontends["open"].models == ["law"]


async def test_a_model_that_is_no_text_or_that_the_route_requires_is_refused(service: Service) -> None:
    for path, model in ((CHAT, 5), ("/api/chat", None)):
        refused = await service.ask("adapted", path=path, json=chat(model=model))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


async def test_a_form_that_names_no_model_is_given_one() -> None:
    policy, route = Policy(PolicyConfig(), b"secret"), MODEL_ROUTES["/v1/audio/translations"]
    headers = [(name.encode(), value.encode()) for name, value in MULTIPART.items()]
    body = FILE + b"--x--\r\n"
    asked, body = for_model(await policy.read(route, headers, body), headers, body, "law")
    assert asked.model == "law"
    assert await policy.read(route, headers, body) == asked


async def test_a_form_for_a_model_out_of_scope_and_its_card(service: Service) -> None:
    for key, code in (("scoped", "model_not_found"), ("all", "task_not_supported")):
        body = FILE + SPEECH.replace(b"open", b"hidden")
        answer = await service.ask(key, path="/v1/audio/translations", content=body, headers=MULTIPART)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)
    for name in ("hidden", "absent"):
        answer = await service.ask("scoped", "GET", f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    listed = (await service.ask("scoped", "GET", "/v1/models")).json()
    assert [card["id"] for card in listed["data"]] == ["open", "open-too"]


async def test_an_overload_never_reaches_the_front_end_and_leaves_what_runs_alone(service: Service) -> None:
    frontend = service.frontends["open"]
    frontend.answers.clear()
    running = asyncio.create_task(service.ask("all"))
    await frontend.let_in.wait()
    for _ in range(20):
        refused = await service.ask("limited")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert frontend.calls == 1
    frontend.answers.set()
    assert (await running).status_code == 200
    answer = await service.ask("limited")
    assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, "99")
