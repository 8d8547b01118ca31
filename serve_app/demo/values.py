"""What stands in the places of questions: words of the pools, made-up words, numbers, times."""

from collections.abc import Callable, Mapping
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
    """Draws values. The ones for evaluation share no pool word with those for training."""

    def __init__(self, pools: Mapping[str, Pool], random: Random, held_out: bool = False) -> None:
        self._pools, self._random, self._held_out = pools, random, held_out

    def draw(self, kind: str) -> str:
        """A value of a pool or of a generated kind."""
        if kind == "text":
            return " ".join(self._word("word") for _ in range(self._random.randint(1, 6)))
        return GENERATED[kind](self._random) if kind in GENERATED else self._word(kind)

    def _word(self, kind: str) -> str:
        pool = self._pools[kind]
        if pool.open and self._random.random() < (0.35 if kind != "word" else 0.15):
            capital = pool.train[0][0].isupper()
            words = [self.made_up() for _ in range(self._random.choice([1, 1, 1, 2]) if kind != "word" else 1)]
            return " ".join(word.capitalize() if capital else word for word in words)
        return self._random.choice(pool.held_out if self._held_out else pool.train)

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


def placeholders(text: str) -> list[str]:
    """The names in braces, in order; none where the braces are no placeholders."""
    try:
        return [name for _, name, _, _ in Formatter().parse(text) if name]
    except ValueError:
        return []
