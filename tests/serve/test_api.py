"""Routes, key and errors, over HTTP."""

import ipaddress

import httpx
import psutil
import pytest

from tests.serve.refusals import refusal
from tests.service import Service, command_line

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "[[answer: yes]]"}]}


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic {key}"}, {"authorization": "{key}"}],
    ids=["none", "wrong", "basic", "bare"],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/nowhere")],
)
def test_everything_needs_the_key(service: Service, method: str, path: str, headers: dict[str, str]) -> None:
    sent = {name: value.format(key=service.key) for name, value in headers.items()}
    response = httpx.request(method, service.url + path, headers=sent)
    assert refusal(response) == (401, "invalid_api_key", None)
    assert response.headers["www-authenticate"] == "Bearer"


def test_nothing_listens_beyond_loopback(service: Service) -> None:
    ours = {process.pid: command_line(process) for process in service.processes()}
    listening = [
        (ipaddress.ip_address(socket.laddr.ip.removeprefix("::ffff:")), ours[socket.pid])
        for socket in psutil.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN and socket.pid in ours
    ]
    assert listening
    assert [found for found in listening if not found[0].is_loopback] == []


def test_health_needs_no_key_and_tells_the_truth(service: Service) -> None:
    response = httpx.get(f"{service.url}/api/healthz")
    health = response.json()
    models = {model["id"]: model for model in health["details"]["models"]}
    assert response.status_code == 200
    assert {name: value for name, value in health.items() if name != "details"} == {
        "status": "ok",
        "gpu_available": False,
        "model_loaded": True,
        "upstream_healthy": True,
        "queue_size": 0,
    }
    assert models["demo-2"] == {
        "id": "demo-2",
        "status": "ready",
        "replicas": {"running": 2, "target": 2},
        "tasks": ["generate"],
        "max_model_len": 2048,
        "error": None,
    }
    assert "embed" in models["embed"]["tasks"]


@pytest.mark.parametrize("path", ["/v1/models", "/api/models"])
def test_models_are_listed_over_all_apps(service: Service, path: str) -> None:
    listed = service.http.get(path).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["scripted", "demo", "demo-2", "demo-tp", "embed", "narrow"]


def test_one_model(service: Service) -> None:
    assert service.http.get("/v1/models/demo").json()["max_model_len"] == 2048
    assert refusal(service.http.get("/v1/models/absent")) == (404, "model_not_found", "model")


def test_api_chat_streams_unless_told_not_to(service: Service) -> None:
    streamed = service.http.post("/api/chat", json=CHAT)
    whole = service.http.post("/api/chat", json={**CHAT, "stream": False})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert whole.json()["choices"][0]["message"]["content"] == "yes"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_model_must_be_there_and_able(service: Service, path: str) -> None:
    absent, unable = ({**CHAT, "model": model} for model in ("absent", "embed"))
    assert refusal(service.http.post(path, json=absent)) == (404, "model_not_found", "model")
    assert refusal(service.http.post(path, json=unable)) == (404, "task_not_supported", "model")
    assert refusal(service.http.post(path, json={**CHAT, "model": 3})) == (400, "invalid_value", "model")


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
def test_a_model_without_ears_takes_no_speech(service: Service, path: str) -> None:
    speech = {"file": ("speech.wav", b"RIFF\x24\x00\x00\x00WAVE", "audio/wav")}
    response = service.http.post(path, data={"model": "demo"}, files=speech)
    assert refusal(response) == (404, "task_not_supported", "model")


def test_api_chat_requires_a_model(service: Service) -> None:
    response = service.http.post("/api/chat", json={"messages": CHAT["messages"]})
    assert refusal(response) == (400, "invalid_value", "model")


def test_without_a_model_v1_takes_the_first(service: Service) -> None:
    answer = service.http.post("/v1/chat/completions", json={"messages": CHAT["messages"]}).json()
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("scripted", "yes")


def test_metrics_have_vllms_names_for_every_model(service: Service) -> None:
    for model in ("demo", "scripted"):
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        assert service.http.post("/v1/chat/completions", json=body).status_code == 200
    text = service.http.get("/metrics").text
    for model in ("demo", "scripted", "embed"):
        assert f'vllm:num_requests_running{{engine="0",model_name="{model}"}} 0.0\n' in text
    assert text.count("# TYPE vllm:generation_tokens_total counter") == 1
