"""What a model would read in a request's text, as far as it can be told before anything is tokenized."""

import re
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

from serve_app.gateway.errors import ContextLengthExceeded, InvalidContent
from serve_app.gateway.policy.check import Checked
from serve_app.gateway.policy.settings import PolicyConfig

# They are compared with the answer, and are no part of the prompt.
STOPS = frozenset({"stop", "stop_sequences"})


class Tokenizer(Protocol):
    """What is asked of vLLM's tokenizers."""

    @property
    def all_special_tokens(self) -> list[str]: ...
    def get_added_vocab(self) -> dict[str, int]: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...


class Reading:
    """How one model reads."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        """`context`: tokens of prompt and answer together."""
        tokens = control_tokens(tokenizer)
        self._control = re.compile(_any_of(sorted(tokens))) if tokens else None
        self._context = context

    def check(self, request: Checked, config: PolicyConfig, context: int | None) -> None:
        """Refuse what need not be tokenized to be refused. `context`: tokens that the key may use.

        Raises:
            ContextLengthExceeded: a prompt has more characters than could fit.
            InvalidContent: text of a chat has a control token of the model, which could end its turn and begin another.
        """
        most = min(self._context, context or self._context) * config.chars_per_token
        if request.chars > most:
            raise ContextLengthExceeded(
                f"The prompt has {request.chars} characters; this model takes at most {most} from this key."
            )
        if request.chat is None or config.control_tokens == "pass":
            return
        for name, value in request.chat.items():
            if name not in STOPS and (found := self._find(value, name)) is not None:
                path, token = found
                raise InvalidContent(
                    f"`{path}` has the text {token}, which this model reads as a control token.", param=path
                )

    def _find(self, value: Any, path: str) -> tuple[str, str] | None:
        """The path of the first text with a control token, and the token. Names within JSON are text too."""
        if type(value) is str:
            match = self._control.search(value) if self._control else None
            return (path, match[0]) if match else None
        named = self._find(" ".join(value), path) if type(value) is dict else None
        children = value.items() if type(value) is dict else enumerate(value) if type(value) is list else ()
        inside = (self._find(item, f"{path}.{name}") for name, item in children)
        return named or next(filter(None, inside), None)


def control_tokens(tokenizer: Tokenizer) -> set[str]:
    """The special tokens that the tokenizer makes of their text, wherever it stands; of some there are none."""
    listed = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return {text for text in listed if text.strip() and _vanishes(text, tokenizer)}


def _vanishes(text: str, tokenizer: Tokenizer) -> bool:
    # Only special tokens are left out of a decoded text. Markup such as `<think>` is not: answers may have it.
    ids = tokenizer.encode(text, add_special_tokens=False)
    return not tokenizer.decode(ids, skip_special_tokens=True).strip()


def _any_of(texts: list[str]) -> str:
    """A pattern for any of these sorted texts, in which those that begin alike share their beginning.

    It looks at a character once, however many texts there are: one alternative after another would take seconds.
    """
    if not texts[0]:
        return ""
    parts = [
        re.escape(first) + _any_of([text[1:] for text in group]) for first, group in groupby(texts, key=itemgetter(0))
    ]
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
