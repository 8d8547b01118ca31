"""Names that stand for one of several models: which one a conversation gets, and what falls back on what."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from serve_app.config import ModelConfig, ServiceConfig
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway import reports
from serve_app.gateway.aliases import Alias, conversation_of, read_aliases
from serve_app.gateway.errors import ModelNotFound
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.models import Model, Models
from serve_app.ray_seam import Replicas
from serve_app.settings import ConfigError

ALL = Caller.unlimited("admin")
CONVERSATIONS = [str(number).encode() for number in range(4000)]
SYSTEM, HI = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}


def caller(*globs: str) -> Caller:
    return Caller("key", "key", models=globs)


def models(aliases: dict[str, Any], watch: "Watch | None" = None, **fallbacks: str | None) -> Models:
    """Models of these ids with these fallbacks, and aliases beside them."""
    made = []
    for name, fallback in fallbacks.items():
        config = ModelConfig(id=name, source="acme/m", fallback=fallback)
        made.append(Model(config, cast("Any", SimpleNamespace(deployment_name=f"replica-{name}"))))
    return Models(made, read_aliases(aliases), cast("FleetWatch", Watch() if watch is None else watch))


class Watch(dict[str, Replicas]):
    """The replicas of each deployment; those that a test says nothing of are loading."""

    def __missing__(self, _: str) -> Replicas:
        return Replicas()


def candidates(of: Models, name: str | None, who: Caller = ALL, conversation: bytes = b"c") -> list[str]:
    return [each.id for each in of.candidates(name, who, lambda: conversation)]


def test_conversations_are_shared_out_by_weight_and_keep_their_model() -> None:
    alias = Alias(models={"v1": 90, "v2": 10})
    chosen = [alias.choose(each, {"v1", "v2"}) for each in CONVERSATIONS]
    assert chosen == [alias.choose(each, {"v1", "v2"}) for each in CONVERSATIONS]
    assert 340 < chosen.count("v2") < 460


def test_a_changed_weight_moves_no_more_conversations_than_it_has_to() -> None:
    before = [Alias(models={"v1": 90, "v2": 10}).choose(each, {"v1", "v2"}) for each in CONVERSATIONS]
    after = [Alias(models={"v1": 80, "v2": 20}).choose(each, {"v1", "v2"}) for each in CONVERSATIONS]
    moved = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert set(moved) == {("v1", "v2")}
    assert 320 < len(moved) < 520


def test_a_weight_of_0_and_a_model_that_is_not_served_get_nothing() -> None:
    alias = Alias(models={"v1": 0, "v2": 1, "v3": 99})
    assert {alias.choose(each, {"v1", "v2"}) for each in CONVERSATIONS[:50]} == {"v2"}
    assert alias.choose(b"c", {"v1"}) is None


def test_an_alias_has_a_short_and_a_long_form() -> None:
    assert read_aliases({"chat": {"v1": 90, "v2": 10}}) == {"chat": Alias(models={"v1": 90, "v2": 10})}
    long = {"chat": {"models": {"v1": 1}, "fallback": "small"}}
    assert read_aliases(long)["chat"].fallback == "small"
    assert read_aliases(None) == {}


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"chat": {"v1": -1}}, "chat.*greater than or equal to 0"),
        ({"chat": {"v1": 0}}, "all weights are 0"),
        ({"chat": {}}, "chat"),
        ({"chat": ["v1"]}, "chat"),
        ({"a b": {"v1": 1}}, "a b"),
        ({"chat": {"models": {"v1": 1}, "weight": 3}}, "Extra inputs"),
    ],
)
def test_an_alias_that_is_wrong_is_named(aliases: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_aliases(aliases)
    assert str(caught.value).startswith("aliases: ")


def service(aliases: dict[str, Any], **fallbacks: str | None) -> ServiceConfig:
    listed = [{"id": name, "source": "acme/m", "fallback": fallback} for name, fallback in fallbacks.items()]
    return ServiceConfig.model_validate({"models": listed, "aliases": aliases})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: service({"v1": {"v2": 1}}, v1=None, v2=None), "aliases: v1 is also the id of a model"),
        (lambda: service({"chat": {"v3": 1}}, v1=None), "aliases: chat: no model v3 is listed"),
        (lambda: service({"chat": {"models": {"v1": 1}, "fallback": "x"}}, v1=None), "chat: no model x"),
        (lambda: service({}, v1="v2"), "model v1: fallback: no other model v2 is listed"),
        (lambda: service({}, v1="v1"), "model v1: fallback: no other model v1"),
    ],
)
def test_names_that_do_not_fit_stop_the_start(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config().resolve({})


def test_default_model_leaves_aliases_without_a_model_out() -> None:
    config = service({"chat": {"v1": 1}}, v1="v2", v2=None)
    assert [model.id for model in config.resolve({"DEFAULT_MODEL": "demo"})] == ["demo"]
    left = models({"chat": {"v1": 1}}, demo=None)
    assert [name.id for name in left.visible(ALL)] == ["demo"]


def test_a_wrong_alias_stops_serve() -> None:
    with pytest.raises(ValidationError, match="weights"):
        service({"chat": {"v1": 0}}, v1=None)


def test_a_request_falls_back_along_the_models_and_ends_there() -> None:
    of = models({"chat": {"models": {"v1": 1}, "fallback": "last"}}, v1="v2", v2="v1", last=None, other="gone")
    assert candidates(of, "v1") == ["v1", "v2"]
    assert candidates(of, "chat") == ["v1", "v2", "last"]
    assert candidates(of, "other") == ["other"]
    assert candidates(of, None) == ["v1", "v2"]


def test_a_conversation_gets_another_model_while_its_own_loads_and_no_model_without_weight() -> None:
    watch = Watch()
    of = models({"canary": {"v1": 1, "v2": 1000}, "old": {"v1": 0, "v2": 1}}, watch, v1=None, v2=None)
    assert [candidates(of, name)[0] for name in ("canary", "old")] == ["v2", "v2"]  # where none can answer, as ever
    v1, v2 = of
    v1.frontend = v2.frontend = cast("Any", SimpleNamespace())
    watch["replica-v1"] = Replicas(running=1)
    assert [candidates(of, name)[0] for name in ("canary", "old")] == ["v1", "v2"]
    watch["replica-v2"] = Replicas(running=1)
    assert [candidates(of, name)[0] for name in ("canary", "old")] == ["v2", "v2"]


def test_a_keys_scope_is_that_of_the_names_that_clients_send() -> None:
    of = models({"chat": {"v2": 1}}, v1="v2", v2=None)
    assert candidates(of, "chat", caller("chat")) == ["v2"]
    assert candidates(of, "v1", caller("v1")) == ["v1", "v2"]
    assert candidates(of, None, caller("v2")) == ["v2"]
    for name, scope in (("v2", "chat"), ("chat", "v*"), ("nope", "*"), (None, "x")):
        with pytest.raises(ModelNotFound):
            candidates(of, name, caller(scope))
    assert [name.id for name in of.visible(caller("chat", "v1"))] == ["v1", "chat"]


def test_what_belongs_to_one_conversation() -> None:
    first = conversation_of("k", [], {"messages": [SYSTEM, HI]})
    assert first == conversation_of("k", [], {"messages": [SYSTEM, HI, {"role": "assistant", "content": "Yes?"}, HI]})
    assert first != conversation_of("other key", [], {"messages": [SYSTEM, HI]})
    assert first != conversation_of("k", [], {"messages": [SYSTEM, {"role": "user", "content": "Ho"}]})
    assert first != conversation_of("k", [], {"system": "Be short.", "messages": [SYSTEM, HI]})
    named = [(b"x-conversation-id", b"7")]
    assert conversation_of("k", named, {"prompt": "a"}) == conversation_of("k", named, {"prompt": "b", "user": "u"})
    assert conversation_of("k", [], {"user": "u", "prompt": "a"}) == conversation_of("k", [], {"user": "u"})
    unnamed = [(b"x-conversation-id", b"")]
    assert conversation_of("k", unnamed, {"user": "", "messages": [SYSTEM, HI]}) == first
    assert conversation_of("k", [], [("prompt", "of a form")]) == conversation_of("k", [], {})


def test_an_adapter_is_a_model_of_its_own_on_the_replicas_of_another() -> None:
    config = ModelConfig(id="v1", source="acme/m", adapters={"law": "/law"}, fallback="v2")
    handle: Any = SimpleNamespace(deployment_name="replica")
    made = [Model(config, handle), Model(ModelConfig(id="v2", source="acme/m"), handle)]
    of = Models(made, read_aliases({"chat": {"law": 1}}), cast("FleetWatch", Watch()))
    assert [(name.id, name.parent) for name in of.visible(ALL)] == [
        ("v1", None),
        ("law", "v1"),
        ("v2", None),
        ("chat", None),
    ]
    assert candidates(of, "law", caller("law")) == ["law", "v2"]
    assert candidates(of, "chat") == ["law", "v2"]
    card = reports.model_card(of.get("law", ALL))
    assert (card.id, card.root, card.parent) == ("law", "/law", "v1")
