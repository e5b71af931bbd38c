"""Who holds which page of keys and values, and which of them may serve again. Pure Python, no torch.

A block is PAGE neighbouring positions of a sequence; a page is the room of a block in every layer of one kind. Layers
that see everything are a kind, those with a window another, each with a pool of its own. A page whose block is complete
never changes, so it may serve every sequence that begins with the same tokens: it is found by a key, the digest of all
tokens up to the block's end and of the model's variant that ran them. Nobody holds it any longer: it is remembered
until its room is needed, the least recently used first.

A table with a window is a list of pages like any other, but holds only those that the window still sees; the entries
before them say page 0 and are never read.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from ossia.errors import OssiaError

PAGE = 64
"""Positions of a page; as in `kernels.pages`."""
_DIGEST_BYTES = 16


def num_blocks(num_tokens: int) -> int:
    """Blocks that so many tokens touch."""
    return -(-num_tokens // PAGE)


def first_block(position: int, window: int | None) -> int:
    """The first block that a query at `position` sees, or one later does."""
    return 0 if window is None else max(0, position - window + 1) // PAGE


def most_blocks(num_tokens: int, window: int) -> int:
    """The most blocks that `num_tokens` new tokens together see and fill, wherever they begin."""
    return -(-(window - 1 + num_tokens + PAGE - 1) // PAGE)


def extend_keys(keys: list[bytes], tokens: Sequence[int], variant: bytes = b"") -> None:
    """Append the keys of those complete blocks of `tokens` that `keys` does not have yet.

    variant: of the model that computes them; another one's content is another.
    """
    for block in range(len(keys), len(tokens) // PAGE):
        parent = keys[-1] if keys else variant
        content = array("q", tokens[block * PAGE : (block + 1) * PAGE]).tobytes()
        keys.append(blake2b(parent + content, digest_size=_DIGEST_BYTES).digest())


class Pool:
    """Pages 0 .. num_pages - 1 of one kind: each is free, held by one or more tables, or remembered."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._keys: list[bytes | None] = [None] * num_pages
        self._pages: dict[bytes, int] = {}
        self._remembered: OrderedDict[int, None] = OrderedDict()
        """Known and held by nobody, the least recently used first."""

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could give, one after the other."""
        return len(self._free) + len(self._remembered)

    @property
    def num_held(self) -> int:
        """Pages in some table."""
        return self.num_pages - self.num_available

    def allocate(self) -> int | None:
        """A page for one holder, with anything in it; None where all are held."""
        if self._free:
            page = self._free.pop()
        elif self._remembered:
            page, _ = self._remembered.popitem(last=False)
            self._unname(page)
        else:
            return None
        self._holders[page] = 1
        return page

    def find(self, key: bytes) -> int | None:
        """The page with this content, if there is one."""
        return self._pages.get(key)

    def is_held(self, page: int) -> bool:
        """Whether it is in some table."""
        return self._holders[page] > 0

    def share(self, page: int) -> None:
        """One more holder, of a page that `find` gave."""
        self._holders[page] += 1
        self._remembered.pop(page, None)

    def release(self, page: int) -> None:
        """One holder fewer. The last one leaves the page remembered, or free where it has no key."""
        self._holders[page] -= 1
        if self._holders[page] == 0:
            if self._keys[page] is None:
                self._free.append(page)
            else:
                self._remembered[page] = None

    def name(self, page: int, key: bytes) -> None:
        """What a held page holds is complete, and to be found by this key. A page that others hold keeps its key."""
        known = self._pages.get(key)
        if known == page or self._keys[page] is not None:
            return
        if known is not None:
            if self._holders[known]:
                return
            self.forget(key)  # The same content twice would only take room.
        self._keys[page], self._pages[key] = key, page

    def forget(self, key: bytes) -> None:
        """Nobody is to find this content again."""
        page = self._pages.get(key)
        if page is None:
            return
        self._unname(page)
        if self._holders[page] == 0:
            del self._remembered[page]
            self._free.append(page)

    def _unname(self, page: int) -> None:
        key = self._keys[page]
        if key is not None:
            del self._pages[key]
            self._keys[page] = None

    def check(self, held: Mapping[int, int]) -> None:
        """Raise OssiaError unless the books are right. `held`: page → the number of tables that hold it."""
        for page, holders in enumerate(self._holders):
            if holders != held.get(page, 0):
                raise OssiaError(f"page {page} counts {holders} holders, and {held.get(page, 0)} tables hold it")
        states = Counter([*self._free, *self._remembered, *(page for page, count in held.items() if count)])
        for page in range(self.num_pages):
            if states[page] != 1:
                raise OssiaError(
                    f"page {page} is in {states[page]} of the states free, remembered and held, not in one"
                )
        if len(states) != self.num_pages:
            raise OssiaError(f"pages {sorted(states)[-3:]} are none of the {self.num_pages}")
        for page, key in enumerate(self._keys):
            if key is not None and self._pages.get(key) != page:
                raise OssiaError(f"page {page} has a key that leads to page {self._pages.get(key)}")
            if page in self._remembered and key is None:
                raise OssiaError(f"page {page} is remembered without a key")
        if len(self._pages) != sum(key is not None for key in self._keys):
            raise OssiaError("a key leads to a page that does not have it")


class Table:
    """The pages of one sequence in one pool, block by block."""

    __slots__ = ("first", "pages", "pool", "window")

    def __init__(self, pool: Pool, window: int | None) -> None:
        self.pool = pool
        self.window = window
        self.pages = array("i")
        self.first = 0
        """Blocks before this one are no longer held."""

    @property
    def held(self) -> Iterable[int]:
        """The pages it holds."""
        return self.pages[self.first :]

    def found(self, keys: Sequence[bytes], blocks: int) -> list[int] | None:
        """The pages to go on with after `blocks` blocks with these keys; None where one is not there."""
        pages: list[int] = []
        for block in range(first_block(blocks * PAGE, self.window), blocks):
            page = self.pool.find(keys[block])
            if page is None:
                return None
            pages.append(page)
        return pages

    def resume(self, blocks: int, pages: Sequence[int]) -> None:
        """Go on, from an empty table, with what `found` gave."""
        for page in pages:
            self.pool.share(page)
        self.first = blocks - len(pages)
        self.pages = array("i", [0] * self.first + [*pages])

    def grow(self, blocks: int) -> bool:
        """Make it `blocks` long; False where pages ran out on the way."""
        while len(self.pages) < blocks:
            page = self.pool.allocate()
            if page is None:
                return False
            self.pages.append(page)
        return True

    def name(self, block: int, key: bytes) -> None:
        """This block is complete."""
        self.pool.name(self.pages[block], key)

    def trim(self, position: int) -> None:
        """Give back what nobody from `position` on sees."""
        first = min(first_block(position, self.window), len(self.pages))
        for block in range(self.first, first):
            self.pool.release(self.pages[block])
            self.pages[block] = 0
        self.first = max(self.first, first)

    def clear(self) -> None:
        """Give everything back; the beginning last, so that it is remembered longest."""
        for block in range(len(self.pages) - 1, self.first - 1, -1):
            self.pool.release(self.pages[block])
        self.pages, self.first = array("i"), 0
