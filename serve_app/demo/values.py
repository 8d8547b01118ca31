"""What stands in the places of questions: words of the pools, made-up words, numbers, times."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from string import Formatter

from serve_app.demo.corpus import Pool

ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kl pl pr sh sl st th tr".split()  # noqa: SIM905
VOWELS = "a e i o u a e i o u ai ea ee oo ou".split()  # noqa: SIM905
CODAS = ["", "", "", "n", "r", "s", "l", "t", "m", "k", "nd", "rt", "x"]
GENERATED: dict[str, Callable[[Random], str]] = {
    "number": lambda random: str(random.randint(1, random.choice([20, 99, 999]))),
    "minutes": lambda random: str(random.randint(1, 90)),
    "people": lambda random: str(random.randint(2, 12)),
    "degrees": lambda random: str(random.randint(-15, 40)),
    "time": lambda random: f"{random.randint(7, 22)}:{random.choice(['00', '15', '30', '45'])}",
    "sum": lambda random: f"{random.randint(2, 999)} {random.choice('+-*/')} {random.randint(2, 999)}",
}


class Values:
    """Draws values. The ones for evaluation share no pool word with those for training.

    Training draws most values from `words`, whatever the pool: from the pools alone, which are short, the model
    would learn their words instead of learning to copy.
    """

    def __init__(
        self, pools: Mapping[str, Pool], random: Random, words: Sequence[str] = (), held_out: bool = False
    ) -> None:
        self._pools, self._random, self._words, self._held_out = pools, random, words, held_out

    def draw(self, kind: str) -> str:
        """A value of a pool or of a generated kind."""
        if kind == "text":
            return " ".join(self._value("word") for _ in range(self._random.randint(1, 6)))
        return GENERATED[kind](self._random) if kind in GENERATED else self._value(kind)

    def options(self, kind: str) -> list[str]:
        """Two or three different values of a pool."""
        wanted, found = self._random.randint(2, 3), dict[str, None]()
        while len(found) < wanted:
            found[self.draw(kind)] = None
        return list(found)

    def word(self) -> str:
        """Any word: made up, or of those that this was made with."""
        return self._random.choice(self._words) if self._words and self._random.random() < 0.6 else self.made_up()

    def _value(self, kind: str) -> str:
        random, pool = self._random, self._pools[kind]
        if not self._held_out and random.random() < (0.3 if kind == "word" else 0.65):
            most = 1 if kind == "word" or not pool.open else 3
            return _written_as(pool, [self._word_or_number() for _ in range(random.randint(1, most))])
        if pool.open and random.random() < (0.15 if kind == "word" else 0.35):
            most = 1 if kind == "word" else random.choice([1, 1, 1, 2])
            return _written_as(pool, [self.made_up() for _ in range(most)])
        return random.choice(pool.held_out if self._held_out else pool.train)

    def _word_or_number(self) -> str:
        """Mostly a word; a number now and then, as dates have."""
        return str(self._random.randint(1, 31)) if self._random.random() < 0.12 else self.word()

    def made_up(self) -> str:
        """A word that no language needs to have."""
        random = self._random
        syllables = random.choice([1, 2, 2, 2, 3])
        return "".join(random.choice(ONSETS) + random.choice(VOWELS) + random.choice(CODAS) for _ in range(syllables))

    def fill(self, text: str) -> str:
        """`text` with its {placeholders} replaced, where they name a kind of value."""
        for kind in placeholders(text):
            while f"{{{kind}}}" in text and (kind in self._pools or kind in (*GENERATED, "text")):
                text = text.replace(f"{{{kind}}}", self.draw(kind), 1)
        return text


def plain_words(texts: Iterable[str], pools: Mapping[str, Pool]) -> list[str]:
    """The words of the texts, each once, but none that stands in a value for evaluation."""
    secret = {word.casefold() for pool in pools.values() for value in pool.held_out for word in value.split()}
    found = {word for text in texts for word in re.findall(r"(?<![\w-])[A-Za-z]{2,14}(?![\w-])", text)}
    return sorted(word for word in found if word.casefold() not in secret)


def _written_as(pool: Pool, words: Sequence[str]) -> str:
    """The words as one value, with capitals if the pool's values have them."""
    return " ".join(word.capitalize() if pool.train[0][0].isupper() else word for word in words)


def placeholders(text: str) -> list[str]:
    """The names in braces, in order; none where the braces are no placeholders."""
    try:
        return [name for _, name, _, _ in Formatter().parse(text) if name]
    except ValueError:
        return []
