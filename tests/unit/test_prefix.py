"""How prompts are cut into blocks, and what is known of the prefixes that conversations share."""

import hypothesis.strategies as st
from hypothesis import given

from serve_app.fleet.prefix import BLOCK, SharedPrefixes, block_hashes

SYSTEM = list(range(10 * BLOCK + 5))


def conversation(number: int, turns: int) -> list[int]:
    """The prompt of a conversation's turn, after the same system prompt as all."""
    return SYSTEM + [1000 + number] * 50 + [2000 + number] * (40 * turns)


@given(st.lists(st.integers(0, 2**31), max_size=6000), st.lists(st.integers(0, 2**31), max_size=200))
def test_the_blocks_of_a_prompt_stay_when_it_goes_on(prompt: list[int], more: list[int]) -> None:
    blocks = block_hashes(prompt)
    assert block_hashes(prompt + more)[: len(blocks)] == blocks


@given(st.lists(st.integers(0, 9), min_size=BLOCK, max_size=3000), st.data())
def test_a_block_stands_for_all_before_it(prompt: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(prompt) - 1))
    other = [*prompt[:place], prompt[place] + 1, *prompt[place + 1 :]]
    blocks, others = block_hashes(prompt), block_hashes(other)
    same = [one == two for one, two in zip(blocks, others, strict=True)]
    assert same == sorted(same, reverse=True)
    assert same.count(True) <= place // BLOCK


def test_blocks_are_full_and_few() -> None:
    assert block_hashes(range(BLOCK - 1)) == ()
    assert [len(block_hashes(range(length))) for length in (BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2048)] == [1, 1, 2, 64]
    assert len(block_hashes(range(131_072))) < 350


def test_prompts_of_two_caches_have_no_block_in_common() -> None:
    assert not set(block_hashes(SYSTEM, "one")) & set(block_hashes(SYSTEM, "other"))


def test_conversations_under_one_system_prompt_have_a_key_each_that_stays() -> None:
    prefixes = SharedPrefixes()
    first = prefixes.key(block_hashes(conversation(0, turns=1)))
    second = prefixes.key(block_hashes(conversation(1, turns=1)))
    assert first == block_hashes(SYSTEM)[0]  # nobody knew then that it is shared
    keys = [[prefixes.key(block_hashes(conversation(number, turns))) for turns in range(2, 9)] for number in range(3)]
    assert [len(set(each)) for each in keys] == [1, 1, 1]
    assert len({each[0] for each in keys}) == 3
    assert keys[1][0] == second


def test_two_gateways_agree_without_talking() -> None:
    one, other = SharedPrefixes(), SharedPrefixes()
    for number in range(4):
        one.key(block_hashes(conversation(number, turns=1)))
        other.key(block_hashes(conversation(9 - number, turns=2)))
    late = block_hashes(conversation(5, turns=3))
    assert one.key(late) == other.key(late)


def test_a_prompt_that_is_all_shared_goes_by_its_last_block() -> None:
    prefixes = SharedPrefixes()
    for number in range(2):
        prefixes.key(block_hashes(conversation(number, turns=1)))
    assert prefixes.key(block_hashes(SYSTEM)) == block_hashes(SYSTEM)[-1]


def test_a_prompt_without_a_full_block_has_no_key() -> None:
    assert SharedPrefixes().key(()) is None


def test_what_is_remembered_is_bounded() -> None:
    prefixes = SharedPrefixes(remembered=100)
    for number in range(50):
        prefixes.key(block_hashes([number] * 1000))
    assert len(prefixes._next) == 100
