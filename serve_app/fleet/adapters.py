"""LoRA adapters as engine cores know them: by a number, which must mean the same to every gateway and replica."""

import hashlib


def adapter_number(name: str) -> int:
    """The `lora_int_id` of an adapter: an engine core that has loaded one of this number loads no other.

    vLLM's front end counts instead, so that a list of adapters that has changed would give one the weights of another.
    """
    # At most 31 bits, and not near those of the dummies that vLLM warms up with.
    return 2**30 + int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") % 2**30
