"""Requests all along while something else happens to the service."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import openai


@contextmanager
def load(ask: Callable[[str], str | None], kinds: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    """Requests to the scripted engine, one after the other, until the end of the block; yields their failures.

    `ask`: what is answered to a message; `kinds`: of each thread the words of its answers, and their pace in ms.
    """
    failures: list[str] = []
    over = threading.Event()

    def in_turn(words: str, pace_ms: int) -> None:
        for number in itertools.count():
            if over.is_set():
                return
            try:
                answer = ask(f"[[answer: {number} {words}]] [[pace: {pace_ms}ms]]")
            except openai.OpenAIError as error:
                answer = repr(error)
            if answer != f"{number} {words}":
                failures.append(str(answer))

    threads = [threading.Thread(target=in_turn, args=kind) for kind in kinds]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        over.set()
        for thread in threads:
            thread.join()
