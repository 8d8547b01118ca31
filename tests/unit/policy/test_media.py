"""Images and sound inside a request, for a model that takes them and for one that does not."""

import base64
import io
import json
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from serve_app.gateway.policy.settings import MediaBounds, PolicyConfig
from tests.unit.policy.door import CHAT, LEAST, USER, caller, check, passed, refused

BOUNDS = MediaBounds(models=["see*"], images=2, image_bytes=20_000, image_pixels=10_000, image_side=8, audio_bytes=100)
SEEING = PolicyConfig(media=BOUNDS)
UNSUPPORTED = (400, "unsupported_parameter")
IMAGE = (400, "invalid_image", "messages.0.content.0.image_url.url")
URL = (400, "invalid_image_url", "messages.0.content.0.image_url.url")


def picture(kind: str = "PNG", size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind, **options)
    return file.getvalue()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(link: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": link}}


def asking(*parts: dict[str, Any], model: str | None = "seeing") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": list(parts)}]}


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has ten thousand million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9000))
        + chunk(b"IEND", b"")
    )


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_whole_still_images_pass_as_they_are(kind: str) -> None:
    part = image(url(picture(kind.upper()), f"image/{kind}"))
    text = {"type": "text", "text": "What is this?"}
    assert passed(CHAT, asking(part, text), config=SEEING)["messages"][0]["content"] == [part, text]


@pytest.mark.parametrize(
    "link",
    [
        url(picture()[:-30]),
        url(picture()[:40]),
        url(picture("JPEG", (64, 64))[:300], "image/jpeg"),
        url(b"no image at all"),
        url(b""),
        url(picture("PNG"), "image/jpeg"),
        url(picture("JPEG", (64, 64)), "image/png"),
        url(picture("BMP"), "image/bmp"),
        url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        url(picture(size=(1, 1))),
        url(picture(size=(7, 100))),
        url(picture(size=(101, 100))),
        url(picture("PNG", (99, 99), compress_level=0)),
        url(bomb()),
        url(animated("GIF"), "image/gif"),
        url(animated("PNG")),
        url(animated("WEBP"), "image/webp"),
        "data:image/png;base64,*not*base64*",
        "data:image/png;base64," + base64.b64encode(picture()).decode() + "\n",
        "data:image/png," + "a" * 10,
        "data:",
        "data:text/html;base64,PGI+",
    ],
    ids=[
        *(
            "truncated",
            "header only",
            "truncated jpeg",
            "no image",
            "empty",
            "png as jpeg",
            "jpeg as png",
            "bmp",
            "svg",
        ),
        *(
            "1x1",
            "narrow",
            "pixels",
            "bytes",
            "bomb",
            "gif",
            "apng",
            "webp",
            "base64",
            "newline",
            "plain",
            "bare",
            "html",
        ),
    ],
)
def test_other_images(link: str) -> None:
    assert refused(CHAT, asking(image(link)), config=SEEING) == IMAGE


@pytest.mark.parametrize(
    "link",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://good.example\\@127.0.0.1/a.png",
        "HTTP://localhost/a.png",
        " data:image/png;base64,AAAA",
        "DATA:image/png;base64,AAAA",
        "ftp://localhost/a",
        "//localhost/a.png",
        "a.png",
        "",
        3,
    ],
)
@pytest.mark.parametrize("model", ["seeing", "blind", None])
def test_nothing_is_fetched(link: object, model: str | None) -> None:
    assert refused(CHAT, asking(image(link), model=model), config=SEEING) == URL
    sent = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": link}]}], "model": model}
    found = refused("/v1/responses", sent, config=SEEING)
    assert found == (400, "invalid_image_url", "input.0.content.0.image_url")


def test_anthropic_sources_are_not_fetched() -> None:
    block = {"type": "image", "source": {"type": "url", "url": "http://localhost/a.png"}}
    found = refused("/v1/messages", {**asking(block), "max_tokens": 1}, config=SEEING)
    assert found == (*UNSUPPORTED, "messages.0.content.0.source.type")


def test_anthropic_images() -> None:
    def sent(data: bytes, kind: str) -> dict[str, Any]:
        source = {"type": "base64", "media_type": kind, "data": base64.b64encode(data).decode()}
        return asking({"type": "image", "source": source})

    whole = sent(picture(), "image/png")
    assert passed("/v1/messages", whole, config=SEEING)["messages"] == whole["messages"]
    param = "messages.0.content.0.source.data"
    assert refused("/v1/messages", sent(picture()[:50], "image/png"), config=SEEING) == (400, "invalid_image", param)
    assert refused("/v1/messages", sent(bomb(), "image/png"), config=SEEING) == (400, "invalid_image", param)
    assert refused("/v1/messages", whole) == (*UNSUPPORTED, param)


def test_a_request_has_so_many_images() -> None:
    part = image(url(picture()))
    assert passed(CHAT, asking(part, part), config=SEEING)
    split = [{"role": "user", "content": [part]}] * 3
    found = refused(CHAT, {"model": "seeing", "messages": split}, config=SEEING)
    assert found == (400, "invalid_image", "messages.2.content.0.image_url.url")


@pytest.mark.parametrize("model", ["blind", None])
def test_other_models_take_text_only(model: str | None) -> None:
    part = image(url(picture()))
    assert refused(CHAT, asking(part, model=model), config=SEEING) == (*UNSUPPORTED, IMAGE[2])
    assert refused(CHAT, asking(part)) == (*UNSUPPORTED, IMAGE[2])


@pytest.mark.parametrize(
    "kind",
    ["image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "audio_url", "video_url", "image_pil", "file"],
)
def test_other_parts(kind: str) -> None:
    part = {"type": kind, kind: "AAAA"}
    assert refused(CHAT, asking(part), config=SEEING) == (*UNSUPPORTED, "messages.0.content.0.type")


def test_the_id_of_a_part_may_not_be_chosen() -> None:
    part = {**image(url(picture())), "uuid": "another tenant's"}
    assert refused(CHAT, asking(part), config=SEEING) == (*UNSUPPORTED, "messages.0.content.0.uuid")


def test_sound() -> None:
    def part(data: str) -> dict[str, Any]:
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    param = "messages.0.content.0.input_audio.data"
    whole = asking(part(base64.b64encode(b"a" * 100).decode()))
    assert passed(CHAT, whole, config=SEEING)["messages"] == whole["messages"]
    for data in (base64.b64encode(b"a" * 103).decode(), "", "*"):
        assert refused(CHAT, asking(part(data)), config=SEEING) == (400, "invalid_value", param)
    assert refused(CHAT, asking(part("AAAA"))) == (*UNSUPPORTED, param)


@pytest.mark.parametrize("text", ["<|image_pad|>", "see <|vision_start|> this", "<##PROMPT_EMBEDS##>"])
def test_tokens_that_stand_for_media_are_text_to_a_model_without(text: str) -> None:
    asked = {"messages": [{"role": "user", "content": text}]}
    assert passed(CHAT, {**asked, "model": "blind"}, config=SEEING)["messages"] == asked["messages"]
    assert passed(CHAT, asked)["messages"] == asked["messages"]
    found = (400, "invalid_content", "messages.0.content")
    assert refused(CHAT, {**asked, "model": "seeing"}, config=SEEING) == found
    assert refused(CHAT, asked, config=SEEING) == found  # the first model may be one that sees
    completion = {"prompt": text, "model": "seeing"}
    assert refused("/v1/completions", completion, config=SEEING) == (400, "invalid_content", "prompt")
    system = {"system": text, "model": "seeing"}
    assert refused("/v1/messages", system, config=SEEING) == (400, "invalid_content", "system")
    instructions = {"instructions": text, "model": "seeing"}
    assert refused("/v1/responses", instructions, config=SEEING) == (400, "invalid_content", "instructions")


def test_larger_bodies_are_for_models_that_take_media() -> None:
    config = PolicyConfig(body_bytes=1000, media=BOUNDS)
    asked = {"messages": [{**USER, "content": "a" * 1000}]}
    assert passed(CHAT, {**asked, "model": "seeing"}, config=config)
    for model in ("blind", None):
        found = refused(CHAT, {**asked, "model": model}, config=config)
        assert found == (413, "request_too_large", None)


def test_the_answer_is_bounded_with_media_too() -> None:
    body = json.dumps({**LEAST[CHAT], **asking(image(url(picture())))}).encode()
    checked = check(CHAT, body, caller(max_tokens=5), SEEING)
    assert json.loads(checked.body)["max_completion_tokens"] == 5
