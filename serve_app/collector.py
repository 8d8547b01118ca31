"""How often Python's garbage collector runs in the processes that requests pass through."""

import gc

NEW_OBJECTS_TO_A_COLLECTION = 20_000


def collect_seldom() -> None:
    """Python's own 700 has it walk all open requests several times for each new one: a tenth of a gateway's work.

    What it finds is little, and is freed a few requests later.
    """
    gc.set_threshold(NEW_OBJECTS_TO_A_COLLECTION)
