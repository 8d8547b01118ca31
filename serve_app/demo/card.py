"""The demo model's card: what it is, how it was trained, what it gets right, and the hash of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.demo.evaluate import Outcome
from serve_app.demo.examples import Corpus
from serve_app.demo.folder import WEIGHTS, digest
from serve_app.demo.llama import Llama

CARD = "README.md"
TEXT = """\
# The demo model

A small Llama that vllm-chat-backend trains on its own corpus (`configs/demo`), so that the whole service can be seen
and tested without a GPU and without a download. It answers questions about this service and its field in English,
calls tools, and thinks when it is asked to. It is a demo and knows nothing else. Do not rely on its answers.

| | |
|---|---|
| architecture | LlamaForCausalLM: {layers} layers of {hidden}, {heads} heads, {kv_heads} KV heads, bfloat16 |
| parameters | {parameters:,} |
| vocabulary, context | {vocabulary} tokens of byte-level BPE, {context} tokens |
| corpus | {entries} entries with {asks} phrasings, {tools} tools, {sums} kinds of sums |
| training | {steps} steps, {tokens:,} tokens, the last loss {loss:.4f} |
| `{weights}` | sha256 `{sha256}` |

Greedy answers of these weights, by `python -m serve_app.demo.evaluate`:

| asked | cases | right | share |
|---|---:|---:|---:|
{rows}

Limits: English alone; a question in words that are far from the corpus gets the nearest answer that it knows or "I do
not know that"; sums beyond 20 + 20 and 10 * 10, long conversations and tools of an unusual form often go wrong.
Written by `python -m serve_app.demo.train`. Licence: that of the project.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training. `tokens`: all that were read; `loss`: mean of the last steps."""

    steps: int
    tokens: int
    loss: float


def write_card(folder: Path, model: Llama, corpus: Corpus, run: Run, outcomes: Sequence[Outcome]) -> None:
    """Write the card of the weights in `folder`."""
    shape = model.shape
    text = TEXT.format(
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=shape.vocabulary,
        context=shape.context,
        entries=len(corpus.entries),
        asks=sum(len(entry.ask) for entry in corpus.entries),
        tools=len(corpus.tools.tools),
        sums=len(corpus.sums),
        steps=run.steps,
        tokens=run.tokens,
        loss=run.loss,
        weights=WEIGHTS,
        sha256=digest(folder),
        rows="\n".join(f"| {' | '.join(outcome.row())} |" for outcome in outcomes),
    )
    (folder / CARD).write_text(text)
