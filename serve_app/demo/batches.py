"""Conversations as batches of token ids."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from serve_app.demo.template import Conversation

DRAWN = 768  # conversations at a time, sorted by length so that little is padded
LONGEST = 1024  # tokens; what is longer is cut


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids` [batch, length]; `places` are the flat positions whose next token is trained, `targets` those tokens."""

    ids: Tensor
    places: Tensor
    targets: Tensor

    def parts(self, count: int) -> list["Batch"]:
        """At most `count` batches of about as many rows, which together are this one."""
        rows = -(-len(self.ids) // count)
        starts = range(0, len(self.ids), rows)
        return [self._rows(start, min(start + rows, len(self.ids))) for start in starts]

    def _rows(self, start: int, end: int) -> "Batch":
        first = start * self.ids.shape[1]
        inside = (self.places >= first) & (self.places < end * self.ids.shape[1])
        return Batch(self.ids[start:end], self.places[inside] - first, self.targets[inside])


def batches(conversations: Iterable[Conversation], tokenizer: Tokenizer, tokens: int, seed: int) -> Iterator[Batch]:
    """Batches of about `tokens` tokens, padding included."""
    source, random = iter(conversations), Random(seed)  # noqa: S311 - not a secret
    while drawn := list(islice(source, DRAWN)):
        rows = sorted(encode(drawn, tokenizer), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > tokens:
                groups.append([])
            groups[-1].append(row)
        random.shuffle(groups)
        yield from map(_batch, groups)


def drills(vocabulary: int, tokens: int, seed: int) -> Iterator[Batch]:
    """Batches of about `tokens` random tokens with a span that comes twice; the second one is trained.

    What can be learned from them is to copy, whatever the word is.
    """
    draws = torch.Generator().manual_seed(seed)
    while True:
        span = int(torch.randint(4, 33, (), generator=draws))
        gap = int(torch.randint(0, 33, (), generator=draws))
        rows = tokens // (2 * span + gap)
        copied = torch.randint(vocabulary, (rows, span), generator=draws)
        between = torch.randint(vocabulary, (rows, gap), generator=draws)
        ids = torch.cat((copied, between, copied), dim=1)
        written = torch.zeros_like(ids, dtype=torch.bool)
        written[:, span + gap + 1 :] = True
        yield _train(ids, written)


def encode(conversations: Iterable[Conversation], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """For each conversation its token ids, and which of them the model writes."""
    pieces = [conversation.pieces() for conversation in conversations]
    texts = ["".join(text for text, _ in row) for row in pieces]
    rows = []
    for encoded, row in zip(tokenizer.encode_batch(texts, add_special_tokens=False), pieces, strict=True):
        written = [written for text, written in row for _ in text]
        mask = [written[start] for start, _ in encoded.offsets]
        rows.append((encoded.ids[:LONGEST], mask[:LONGEST]))
    return rows


def _batch(rows: list[tuple[list[int], list[bool]]]) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    written = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, (row, mask) in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        written[number, : len(row)] = torch.tensor(mask)
    return _train(ids, written)


def _train(ids: Tensor, written: Tensor) -> Batch:
    """The batch of these ids [batch, length] that trains the tokens which the model writes: never a row's first."""
    next_ids, trained = ids.roll(-1, dims=1).flatten(), written.roll(-1, dims=1).flatten()
    places = trained.nonzero().squeeze(1)
    return Batch(ids, places, next_ids[places])
