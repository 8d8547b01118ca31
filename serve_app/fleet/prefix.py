"""Prompts as chains of blocks, and what of them is shared by several conversations.

Replicas keep the KV cache of prompts that they have seen, so that the next prompt that begins like one of them is
computed from there only. A conversation's next turn begins like its last one, and many begin with one system prompt.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

# Tokens of the shortest block. Late blocks are a 64th of what comes before them, so that long prompts have few.
BLOCK, SHARE = 32, 64
# Blocks that are remembered: some thousand conversations.
REMEMBERED = 65_536


def block_hashes(tokens: Sequence[int], seed: str = "") -> tuple[bytes, ...]:
    """For each full block of a prompt 8 bytes that stand for it and all before it.

    `seed`: what else keeps two prompts from sharing a cache, such as the salt of the cache or a LoRA adapter.
    """
    data = array("I", tokens)
    hashes, start, end, known = [], 0, BLOCK, seed.encode()
    while end <= len(data):
        known = hashlib.blake2b(known + data[start:end].tobytes(), digest_size=8).digest()
        hashes.append(known)
        start, end = end, end + max(BLOCK, end // SHARE)
    return tuple(hashes)


class SharedPrefixes:
    """Learns from the prompts that come where those that begin alike part."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        # The only block that has followed a block so far; None: several have, or have followed one behind it.
        self._next: OrderedDict[bytes, bytes | None] = OrderedDict()

    def key(self, blocks: Sequence[bytes]) -> bytes | None:
        """What a prompt is routed by: its first block that no other conversation has. None: it has no full block.

        All turns of a conversation have one key, and the conversations under one system prompt have one each, as
        soon as two of them have been seen. Until then the system prompt itself is the key.
        """
        shared = 0
        for place, (block, following) in enumerate(pairwise(blocks)):
            known = self._next.setdefault(block, following)
            if known != following:
                for before in blocks[shared : place + 1]:
                    self._next[before] = None
                shared = place + 1
            self._next.move_to_end(block)
        while len(self._next) > self._remembered:
            self._next.popitem(last=False)
        return blocks[min(shared, len(blocks) - 1)] if blocks else None
