"""What the scripted engine answers: a function of the prompt's tokens, steered by directives in its text.

    [[answer: some text]]      exactly this text (without `]]`: JSON has it as `] ]`), then the end
    [[pace: 20ms]]             so long between two tokens
    [[die after: 7]]           the process kills itself when 7 tokens of the answer have been sent
    [[engine dies after: 7]]   the engine is dead from then on, the process lives
    [[hang after: 7]]          the engine never answers again
    [[fail after: 7]]          this request fails

Without `after: N` a fault comes before the first token. Directives count in the last turn of a chat only.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.tokenizers import TokenizerLike

DIRECTIVE = re.compile(
    r"\[\[(?:"
    r"answer: (?P<answer>.*?)"
    r"|pace: (?P<pace>\d+)ms"
    r"|(?P<fault>die|engine dies|hang|fail)(?: after: (?P<after>\d+))?"
    r")\]\](?!\])",
    re.DOTALL,
)


class Fault(StrEnum):
    DIE = "die"
    ENGINE_DIES = "engine dies"
    HANG = "hang"
    FAIL = "fail"


@dataclass
class Answer:
    """One answer in the making.

    Every token follows from all tokens before it (`state`), so a request that comes again as its prompt and
    the tokens delivered goes on exactly where it stopped, and one wrong token changes all that follow.
    """

    words: Sequence[int]
    state: int
    fixed: Sequence[int] | None = None  # the tokens of `[[answer: ...]]`
    delay: float | None = None  # seconds between two tokens
    faults: dict[int, Fault] = field(default_factory=dict)  # by the number of answer tokens that come before
    written: int = 0  # answer tokens so far, those of earlier attempts included

    @property
    def complete(self) -> bool:
        return self.fixed is not None and self.written >= len(self.fixed)

    @property
    def fault(self) -> Fault | None:
        return self.faults.get(self.written)

    def write(self) -> int:
        """The next token."""
        token = _token(self.words, self.fixed, self.written, self.state)
        self.state = _mix(self.state, token)
        self.written += 1
        return token


class Script:
    """Begins answers in the vocabulary of one tokenizer."""

    def __init__(self, tokenizer: "TokenizerLike") -> None:
        self._tokenizer = tokenizer
        texts = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
        # A prompt rendered by a chat template never ends with a word, which tells the prompt from the answer.
        words = [token for token, text in texts.items() if text.isascii() and text.lstrip().isalpha()]
        self.words = [token for token in words if texts[token][0] == " "] or words

    def begin(self, prompt: Sequence[int]) -> Answer:
        """The answer to `prompt`, which may already end with the first tokens of that answer."""
        states = list(accumulate(prompt, _mix, initial=0))
        answer = Answer(self.words, states[-1])
        self._obey(answer, self._tokenizer.decode(self._last_turn(prompt)))
        if answer.fixed is not None or answer.faults:
            answer.written = self._delivered(prompt, states, answer.fixed)
        if answer.written:
            answer.faults.pop(answer.written, None)  # it has struck, that is why the request comes again
        return answer

    def _last_turn(self, prompt: Sequence[int]) -> list[int]:
        """The last turn that has ended, and what follows it: the header of the answer, delivered tokens."""
        ends = [position for position, token in enumerate(prompt) if token == self._tokenizer.eos_token_id]
        return list(prompt[ends[-2] + 1 :] if len(ends) > 1 else prompt)

    def _obey(self, answer: Answer, text: str) -> None:
        for directive in DIRECTIVE.finditer(text):
            if (fixed := directive["answer"]) is not None:
                answer.fixed = self._tokenizer.encode(fixed, add_special_tokens=False)
            elif directive["pace"]:
                answer.delay = int(directive["pace"]) / 1000
            else:
                answer.faults[int(directive["after"] or 0)] = Fault(directive["fault"])

    def _delivered(self, prompt: Sequence[int], states: Sequence[int], fixed: Sequence[int] | None) -> int:
        """How many tokens at the prompt's end are the answer's: the longest end that this script writes."""
        for start in range(len(prompt)):
            positions = range(start, len(prompt))
            if all(prompt[at] == _token(self.words, fixed, at - start, states[at]) for at in positions):
                return len(positions)
        return 0


def _token(words: Sequence[int], fixed: Sequence[int] | None, position: int, state: int) -> int:
    if fixed is not None and position < len(fixed):
        return fixed[position]
    return words[state % len(words)]


def _mix(state: int, token: int) -> int:
    return zlib.crc32(token.to_bytes(4, "little"), state)
