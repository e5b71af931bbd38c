"""The books of the pages: who holds what, what is remembered, in which order it is forgotten."""

from collections import Counter

import pytest

from ossia.engine.blocks import PAGE, Pool, Table, extend_keys, first_block, most_blocks, num_blocks
from ossia.errors import OssiaError
from ossia.kernels import pages


def test_a_page_is_what_the_kernels_take_for_one() -> None:
    assert PAGE == pages.PAGE


def keys_of(tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, tokens)
    return keys


def test_keys_are_of_all_that_came_before_and_of_complete_blocks_only() -> None:
    tokens = list(range(200))
    keys = keys_of(tokens)
    assert len(keys) == 3
    assert len(set(keys)) == 3
    assert keys_of(tokens[:191]) == keys[:2]
    other = keys_of([7, *tokens[1:]])
    assert not set(other) & set(keys)
    assert keys_of(tokens[64:128]) != keys[1:2]  # The same tokens elsewhere are something else.
    assert keys_of([0] * 64 + [1] * 64)[1] != keys_of([1] * 64 + [1] * 64)[1]


def test_keys_go_on_where_they_ended() -> None:
    tokens = [5 * i for i in range(300)]
    keys = keys_of(tokens[:130])
    extend_keys(keys, tokens)
    assert keys == keys_of(tokens)


@pytest.mark.parametrize(
    ("position", "window", "block"), [(0, 128, 0), (127, 128, 0), (190, 128, 0), (191, 128, 1), (999, None, 0)]
)
def test_the_first_block_that_a_window_sees(position: int, window: int | None, block: int) -> None:
    assert first_block(position, window) == block


@pytest.mark.parametrize("window", [1, 2, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 512])
def test_most_blocks_is_the_worst_of_all_beginnings(window: int, num_tokens: int) -> None:
    worst = max(num_blocks(start + num_tokens) - first_block(start, window) for start in range(5 * PAGE))
    assert most_blocks(num_tokens, window) == worst


def test_pages_are_given_until_all_are_held() -> None:
    pool = Pool(3)
    given = [pool.allocate() for _ in range(4)]
    assert given == [0, 1, 2, None]
    assert (pool.num_available, pool.num_held) == (0, 3)
    pool.release(1)
    assert pool.allocate() == 1


def test_what_is_known_is_found_again_until_its_room_is_needed() -> None:
    pool = Pool(2)
    for key in (b"a", b"b"):
        page = pool.allocate()
        assert page is not None
        pool.name(page, key)
        pool.release(page)
    assert (pool.find(b"a"), pool.find(b"b")) == (0, 1)
    assert pool.num_available == 2
    pool.share(0)  # So that b is the one used least recently.
    pool.release(0)
    assert pool.allocate() == 1
    assert pool.find(b"b") is None
    assert pool.find(b"a") == 0
    pool.check({1: 1})


def test_a_shared_page_is_held_until_the_last_gives_it_back() -> None:
    pool = Pool(2)
    page = pool.allocate()
    assert page is not None
    pool.name(page, b"a")
    pool.share(page)
    pool.release(page)
    assert pool.is_held(page)
    assert pool.num_available == 1
    pool.release(page)
    assert not pool.is_held(page)
    pool.check({})


def test_the_same_content_is_remembered_once() -> None:
    pool = Pool(3)
    first, second, third = (pool.allocate() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    pool.name(first, b"a")
    pool.name(second, b"a")  # The first is held, and stays.
    assert pool.find(b"a") == first
    pool.release(second)
    assert pool.allocate() == second
    pool.release(first)
    pool.name(second, b"a")  # Nobody holds the first: its room is free.
    assert pool.find(b"a") == second
    assert pool.allocate() == first
    pool.check({0: 1, 1: 1, 2: 1})


def test_what_is_forgotten_is_free() -> None:
    pool = Pool(2)
    held, left = pool.allocate(), pool.allocate()
    assert held is not None
    assert left is not None
    pool.name(held, b"a")
    pool.name(left, b"b")
    pool.release(left)
    for key in (b"a", b"b", b"c"):
        pool.forget(key)
        assert pool.find(key) is None
    pool.check({held: 1})
    pool.release(held)
    pool.check({})


@pytest.mark.parametrize("window", [None, 1, 64, 128])
def test_a_table_goes_on_after_any_block_with_what_its_window_sees(window: int | None) -> None:
    pool, tokens = Pool(20), list(range(640))
    keys = keys_of(tokens)
    table = Table(pool, window)
    assert table.grow(10)
    for block, key in enumerate(keys):
        table.name(block, key)
    pages_held = list(table.pages)
    table.clear()
    pool.check({})
    for blocks in range(11):
        found = table.found(keys, blocks)
        assert found == pages_held[first_block(blocks * PAGE, window) : blocks]
        table.resume(blocks, found)
        assert len(table.pages) == blocks
        pool.check(Counter(found))
        assert table.grow(blocks + 2)
        table.trim(blocks * PAGE + 70)
        seen = first_block(blocks * PAGE + 70, window)
        assert table.first == min(seen, blocks + 2)
        pool.check(Counter(table.held))
        table.clear()
    pool.forget(keys[5])
    assert table.found(keys, 5) is not None
    assert (table.found(keys, 6) is None) == (window != 1)
    assert (table.found(keys, 10) is None) == (window is None)


def test_a_table_that_cannot_grow_keeps_what_it_got() -> None:
    table = Table(Pool(2), None)
    assert not table.grow(3)
    assert len(table.pages) == 2


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda pool: pool.share(0), "page 0 counts 2 holders, and 1 tables hold it"),
        (lambda pool: pool.release(0), "page 0 counts 0 holders, and 1 tables hold it"),
        (lambda pool: pool._free.append(0), "page 0 is in 2 of the states"),
        (lambda pool: pool._free.remove(2), "page 2 is in 0 of the states"),
        (lambda pool: pool._free.append(9), r"pages \[.*9\] are none of the 4"),
        (lambda pool: pool._keys.__setitem__(0, b"b"), "page 0 has a key that leads to page 1"),
        (lambda pool: pool._keys.__setitem__(1, None), "page 1 is remembered without a key"),
        (lambda pool: pool._pages.__setitem__(b"x", 3), "a key leads to a page that does not have it"),
    ],
)
def test_false_books_are_noticed(spoil: object, says: str) -> None:
    pool = Pool(4)
    held, remembered = pool.allocate(), pool.allocate()
    assert held == 0
    assert remembered == 1
    pool.name(held, b"a")
    pool.name(remembered, b"b")
    pool.release(remembered)
    pool.check({0: 1})
    spoil(pool)  # type: ignore[operator]
    with pytest.raises(OssiaError, match=says):
        pool.check({0: 1})
