"""Trains the demo model from its corpus: `python -m serve_app.demo.train`. CPU alone is enough.

The same seed, step count and thread count give the same weights. The schedule counts steps, not time.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer
from typer import Option

from serve_app.config import DEMO_MODEL
from serve_app.demo.batches import Batch, batches, drills
from serve_app.demo.card import Run, write_card
from serve_app.demo.decode import answers
from serve_app.demo.evaluate import evaluate, suites, table
from serve_app.demo.examples import Corpus, Examples, read_corpus
from serve_app.demo.folder import read_model, write_model
from serve_app.demo.llama import Llama, Shape
from serve_app.demo.template import Conversation, Turn
from serve_app.demo.tokenizer import train_tokenizer

SEED = 20
TOKENIZER_SAMPLE = 4000  # conversations that the tokenizer is made from
SAMPLE = "What is the KV cache?"
# Shares of what conversations are made of.
MAIN_UNITS = {"entry": 0.46, "tool": 0.44, "sum": 0.1}
FINISH_UNITS = {"entry": 0.38, "tool": 0.55, "sum": 0.07}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train."""

    steps: int
    tokens: int  # of a batch, padding included
    muon_rate: float = 0.02  # of the layers' matrices
    adam_rate: float = 0.004  # of embeddings and norms
    warm_up: int = 40  # steps
    decay: float = 0.6  # share of the main steps in which the rates fall to zero
    drilled: float = 0.08  # share of the main steps, the first ones, that teach nothing but to copy
    finish: float = 0.25  # share of all steps, the last ones, that teach mostly to call tools
    finish_rate: float = 0.5  # share of the full rate that they begin with

    @property
    def main(self) -> int:
        """Steps before the finish."""
        return self.steps - int(self.steps * self.finish)

    def rate(self, step: int) -> float:
        """Share of the full rate at a step."""
        if step < self.main:
            return min(1.0, (step + 1) / self.warm_up, (self.main - step) / (self.main * self.decay))
        return self.finish_rate * min(
            (step - self.main + 1) / self.warm_up, (self.steps - step) / (self.steps - self.main)
        )


class Trainer:
    """A model in training.

    Each thread takes a part of every batch from end to end. That needs no two threads at the same place at the
    same time, which on a machine that does other work costs far more than it gains.
    """

    def __init__(self, recipe: Recipe, shape: Shape, threads: int) -> None:
        torch.manual_seed(SEED)
        self.model = Llama(shape)
        self._recipe, self._parts = recipe, threads
        self._threads = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._parameters = list(self.model.parameters())
        self.size = sum(parameter.numel() for parameter in self._parameters)
        self.step, self.tokens = 0, 0  # taken and read so far
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        self._optimizers: list[tuple[Optimizer, float]] = [
            (AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0), recipe.adam_rate)
        ]
        for part in range(threads):
            muon = Muon(matrices[part::threads], lr=recipe.muon_rate, weight_decay=0.01)
            self._optimizers.append((muon, recipe.muon_rate))

    def losses(self, source: Iterator[Batch]) -> Iterator[float]:
        """Take the recipe's steps that are left; yields the loss of each before it.

        `source` begins at the first step; batches of steps already taken are passed over.
        """
        for batch in islice(source, self.step, self._recipe.steps):
            results = list(self._threads.map(partial(self._gradients, len(batch.targets)), batch.parts(self._parts)))
            for parameter, *gradients in zip(self._parameters, *(found for _, found in results), strict=True):
                parameter.grad = torch.stack(gradients).sum(dim=0)
            list(self._threads.map(partial(self._optimize, self._recipe.rate(self.step)), self._optimizers))
            self.step += 1
            self.tokens += batch.ids.numel()
            yield sum(loss for loss, _ in results)

    def save(self, file: Path) -> None:
        """Write all that `load` needs to go on from here."""
        states = [optimizer.state_dict() for optimizer, _ in self._optimizers]
        unfinished = file.with_suffix(".new")
        torch.save([self.step, self.tokens, self.model.state_dict(), states], unfinished)
        unfinished.rename(file)

    def load(self, file: Path) -> None:
        """Go on from a saved state, which must be of the same recipe, shape and threads."""
        self.step, self.tokens, model, states = torch.load(file)
        self.model.load_state_dict(model)
        for (optimizer, _), state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)

    def _gradients(self, targets: int, batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
        """The share of a part of a batch in the mean loss over `targets` tokens, and its gradients."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model.logits(self.model(batch.ids).flatten(0, 1)[batch.places])
        loss = functional.cross_entropy(logits, batch.targets, reduction="sum") / targets
        return loss.item(), torch.autograd.grad(loss, self._parameters)

    def _optimize(self, rate: float, optimizer: tuple[Optimizer, float]) -> None:
        for group in optimizer[0].param_groups:
            group["lr"] = optimizer[1] * rate
        optimizer[0].step()


def prepare(corpus: Corpus, recipe: Recipe) -> tuple[Tokenizer, Iterator[Batch]]:
    """The tokenizer, made from the corpus, and the batches to train on."""
    sample = islice(Examples(corpus, SEED, MAIN_UNITS).conversations(), TOKENIZER_SAMPLE)
    tokenizer = train_tokenizer(["".join(text for text, _ in conversation.pieces()) for conversation in sample])
    drilled = int(recipe.main * recipe.drilled)
    main, finish = (
        batches(Examples(corpus, SEED + number, units).conversations(), tokenizer, recipe.tokens, SEED)
        for number, units in ((1, MAIN_UNITS), (2, FINISH_UNITS))
    )
    return tokenizer, chain(
        islice(drills(tokenizer.get_vocab_size(), recipe.tokens, SEED), drilled),
        islice(main, recipe.main - drilled),
        finish,
    )


def main(
    *,
    output: Annotated[Path, Option(help="Directory of the trained model.")] = DEMO_MODEL,
    steps: Annotated[int, Option(min=1, help="Optimizer steps.")] = 4800,
    tokens: Annotated[int, Option(min=256, help="Tokens of a step.")] = 4096,
    threads: Annotated[int, Option(min=1, help="CPU threads.")] = 2,
    state: Annotated[Path | None, Option(help="File for the state every 50 steps; training goes on from it.")] = None,
) -> None:
    """Trains the model, asks it all that it should know, and writes it with its card."""
    console = Console(highlight=False)
    corpus = read_corpus()
    recipe = Recipe(steps, tokens)
    tokenizer, source = prepare(corpus, recipe)
    trainer = Trainer(recipe, Shape(tokenizer.get_vocab_size()), threads)
    console.print(f"{trainer.size:,} parameters, {steps} steps of about {tokens} tokens")
    if state and state.exists():
        trainer.load(state)
    started, read, mean = time.monotonic(), trainer.tokens, 0.0
    for loss in trainer.losses(source):
        mean = 0.95 * mean + 0.05 * loss if mean else loss
        if trainer.step % 20 == 0 or trainer.step == steps:
            seconds = time.monotonic() - started
            speed = (trainer.tokens - read) / seconds
            console.print(f"step {trainer.step}/{steps}, loss {mean:.4f}, {speed:.0f} tokens/s, {seconds:.0f} s")
        if trainer.step % 200 == 0:
            said = answers(trainer.model, tokenizer, [Conversation([Turn("user", SAMPLE)])], most=80)[0]
            console.print(f"  {SAMPLE} -> {said}", markup=False)
        if state and trainer.step % 50 == 0:
            trainer.save(state)
    write_model(output, trainer.model, tokenizer)
    rounded, _ = read_model(output)  # as it is served: evaluated with the weights' 16 bits
    outcomes = evaluate(rounded, tokenizer, suites(corpus))
    console.print(table(outcomes))
    write_card(output, rounded, corpus, Run(steps, trainer.tokens, mean), outcomes)


if __name__ == "__main__":
    typer.run(main)
