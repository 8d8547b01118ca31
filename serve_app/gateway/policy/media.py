"""Images and audio inside a request. Nothing is fetched: what is not in the request is refused by its form."""

import binascii
import io
import re
import struct
from dataclasses import dataclass
from typing import Any

from PIL import Image

from serve_app.gateway.errors import InvalidImage, InvalidImageURL, UnsupportedParameter
from serve_app.gateway.policy.rules import NOTHING, Refusal, Rule, Schema, View
from serve_app.gateway.policy.settings import MediaBounds

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
HEADER = re.compile(r"data:(image/[a-z]+);base64,")


@dataclass(frozen=True, slots=True)
class ImageUrl(Rule):
    """A `data:` URL of an image."""

    bounds: MediaBounds
    kinds = frozenset({str})

    def check(self, value: Any, view: View) -> None:
        if type(value) is not str or not value.startswith("data:"):
            raise Refusal("must be a data: URL; the service fetches nothing", InvalidImageURL)
        _require_media(view)
        header = HEADER.match(value)
        if header is None or header[1] not in FORMATS:
            raise Refusal(f"must be base64 of one of: {', '.join(FORMATS)}", InvalidImage)
        check_image(value[header.end() :], FORMATS[header[1]], self.bounds, view)

    def schema(self) -> Schema:
        return NOTHING

    def says(self) -> str:
        return f"`data:` URL of {_image(self.bounds)}"


@dataclass(frozen=True, slots=True)
class ImageData(Rule):
    """An image as base64, of the type that a field beside it names."""

    bounds: MediaBounds
    kinds = frozenset({str})

    def check(self, value: Any, view: View) -> None:
        _require_media(view)
        check_image(value, None, self.bounds, view)

    def schema(self) -> Schema:
        return NOTHING

    def says(self) -> str:
        return f"base64 of {_image(self.bounds)}"


@dataclass(frozen=True, slots=True)
class AudioData(Rule):
    """Sound as base64."""

    bounds: MediaBounds
    kinds = frozenset({str})

    def check(self, value: Any, view: View) -> None:
        _require_media(view)
        if type(value) is not str or len(_decode(value, self.bounds.audio_bytes) or b"") == 0:
            raise Refusal(f"must be base64 of at most {self.bounds.audio_bytes} bytes")

    def schema(self) -> Schema:
        return NOTHING

    def says(self) -> str:
        return f"base64 of at most {self.bounds.audio_bytes} bytes, for the models of `policy.media.models`"


def _image(bounds: MediaBounds) -> str:
    return (
        f"one whole still image of at most {bounds.image_bytes} bytes and {bounds.image_pixels} pixels, at most "
        f"{bounds.images} in a request, for the models of `policy.media.models`"
    )


def check_image(text: Any, format_: str | None, bounds: MediaBounds, view: View) -> None:
    """Raise Refusal unless base64 text is one whole still image in bounds, of the format that it was said to be."""
    view.images += 1
    if view.images > bounds.images:
        raise Refusal(f"is over the limit of {bounds.images} images in a request", InvalidImage)
    data = _decode(text, bounds.image_bytes) if type(text) is str else None
    if not data:
        raise Refusal(f"must be base64 of at most {bounds.image_bytes} bytes", InvalidImage)
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS.values())) as image:
            _check_header(image, format_, bounds)
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError):
        raise Refusal("is not a whole image of the type that it is said to be", InvalidImage) from None


def _check_header(image: Image.Image, format_: str | None, bounds: MediaBounds) -> None:
    if format_ is not None and image.format != format_:
        raise Refusal("is not of the type that it is said to be", InvalidImage)
    if getattr(image, "is_animated", False):
        raise Refusal("must be a still image", InvalidImage)
    if min(image.size) < bounds.image_side:
        raise Refusal(f"must be at least {bounds.image_side} pixels wide and high", InvalidImage)
    if image.width * image.height > bounds.image_pixels:
        raise Refusal(f"must have at most {bounds.image_pixels} pixels", InvalidImage)


def _decode(text: str, most: int) -> bytes | None:
    if len(text) > (most + 2) // 3 * 4:
        return None
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None


def _require_media(view: View) -> None:
    if not view.media:
        raise Refusal("cannot be set: this model takes text only", UnsupportedParameter)
