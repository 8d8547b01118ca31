"""Turns a reply that is no answer into the error that says what happened and what to do."""

import httpx
import msgspec

from cli.errors import BusyError, KeyRefusedError, ModelUnknownError, ServiceError
from cli.sanitize import one_line
from cli.settings import Settings

RETRY_AFTER = 5.0  # seconds, when the service names none
LONGEST_RETRY = 60.0


class _Problem(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _ProblemBody(msgspec.Struct):
    error: _Problem | str = ""


def refusal(response: httpx.Response, settings: Settings) -> ServiceError:
    """Return the error for a reply with an error status, whose body has been read."""
    status, problem = response.status_code, _problem(response.content)
    message = one_line(problem.message)
    if status in {401, 403}:
        return _key_refused(settings)
    if status in {429, 503} and response.headers.get("x-should-retry") != "false":
        return _busy(response, message)
    if status == 404 and problem.code == "model_not_found":
        return ModelUnknownError(message or "The service has no such model.")
    if status in {404, 405}:
        return foreign(response)
    what = "failed" if status >= 500 else "refused the request"
    return ServiceError(f"The service {what} ({status}).", message)


def foreign(response: httpx.Response) -> ServiceError:
    """Return the error for a reply that this service would not give."""
    return ServiceError(
        f"{response.url} answered {response.status_code}, but not as an OpenAI-compatible service does.",
        "Check OPENAI_BASE_URL; it usually ends in /v1.",
    )


def _key_refused(settings: Settings) -> KeyRefusedError:
    if not settings.api_key:
        return KeyRefusedError(
            "The service wants a key, and there is none.",
            "Set OPENAI_API_KEY, or run in the checkout: `make run` writes a key to .env.",
        )
    advice = "Set OPENAI_API_KEY to a key of this service"
    if settings.key_source == "OPENAI_API_KEY":
        advice += ", or unset it so that PROXY_API_KEY counts"
    return KeyRefusedError(f"The service refused the key from {settings.key_source}.", f"{advice}.")


def _busy(response: httpx.Response, message: str) -> BusyError:
    seconds = _retry_after(response)
    if response.status_code == 429:
        what = message or "Too many requests with this key."
        return BusyError(what, f"Try again in {seconds:.0f} s.", seconds, loading=False)
    what = message or "The service cannot take requests now."
    return BusyError(what, "`vllm-chat health --wait 300` returns when it can.", seconds, loading=True)


def _problem(body: bytes) -> _Problem:
    try:
        error = msgspec.json.decode(body, type=_ProblemBody).error
    except msgspec.DecodeError:
        return _Problem()  # a page of a proxy on the way, not a message for people
    return _Problem(error) if isinstance(error, str) else error


def _retry_after(response: httpx.Response) -> float:
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return RETRY_AFTER
    return min(max(seconds, 1.0), LONGEST_RETRY)
