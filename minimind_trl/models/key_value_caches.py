"""Key-value caches for generation, of slots that each hold one text: in pages for a CPU, of a fixed shape for a GPU."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from .decoder import Decoder, Prompts

_PAGE = 64  # tokens
_PAGES_STEP = 16  # a product of another shape costs oneDNN a setup, so the number of pages read is rounded up
_LENGTH_STEP = 256  # tokens by which a static cache grows


class PagedCache:
    """Keys and values in pages of 64 tokens, of which attention reads only those that are in use.

    A batched product copies its operands unless they are contiguous. The pages in use stand side by side in each
    layer's pool, so they are read in place, however long each text is: keys as (pages, kv_heads, 64, D) and values as
    (pages, kv_heads, D, 64), since products with a transposed matrix are the faster ones. When a slot is left, the last
    pages move into its own.
    """

    def __init__(self, decoder: Decoder, slots: int):
        self.heads, self.kv_heads, self.width = decoder.heads, decoder.kv_heads, decoder.head_dim
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.pages: list[list[int]] = [[] for _ in range(slots)]  # of each slot, in the order of its text
        self.positions = torch.zeros(slots, dtype=torch.long)  # of the next token
        self.moves = torch.ones_like(self.positions)  # 0 for slots at rest
        self.count = 0  # pages in use

    def admit(self, slots: list[int], prompts: Prompts, picks: list[int]) -> None:
        """Begin texts in these slots, in place of earlier ones, with `prompts[pick]` for each."""
        self._release(slots)
        rows, places, pages = [], [], []
        for row, (slot, pick) in enumerate(zip(slots, picks, strict=True)):
            length = prompts.lengths[pick]
            self.positions[slot], self.moves[slot] = length - 1, 1
            for place in range(-(-length // _PAGE)):
                rows.append(row)
                places.append(place)
                pages.append(self._new_page(slot))
        self._reserve(prompts)
        for pool, grid in zip(self.keys, prompts.keys, strict=True):
            pool[pages] = _in_pages(grid[picks])[rows, places]
        for pool, grid in zip(self.values, prompts.values, strict=True):
            pool[pages] = _in_pages(grid[picks])[rows, places].transpose(2, 3)

    def keep(self, slots: list[int]) -> None:
        """Continue with these slots only."""
        self._release([slot for slot in range(len(self.pages)) if slot not in set(slots)])
        self.pages = [self.pages[slot] for slot in slots]
        self.positions, self.moves = self.positions[slots], self.moves[slots]

    def rest(self, slots: list[int]) -> None:
        """Let these slots write to the first position of a page until they are needed."""
        self._release(slots)
        for slot in slots:
            self._new_page(slot)
        self.positions[slots] = self.moves[slots] = 0

    def advance(self) -> None:
        """Make room for one more token in every slot."""
        self.positions = self.positions + self.moves
        for slot, position in enumerate(self.positions.tolist()):
            if position == len(self.pages[slot]) * _PAGE:
                self._new_page(slot)
        self._reserve()
        longest = max(map(len, self.pages))
        table = [pages + [0] * (longest - len(pages)) for pages in self.pages]
        self.table = torch.tensor(table).flatten()  # (slots * longest,)
        self.read = min(-(-self.count // _PAGES_STEP) * _PAGES_STEP, len(self.keys[0]))
        owners, places = [0] * self.read, [0] * self.read
        for slot, pages in enumerate(self.pages):
            for place, page in enumerate(pages):
                owners[page], places[page] = slot, slot * longest + place
        self.owners, self.places = torch.tensor(owners), torch.tensor(places)
        self.shares = torch.zeros(len(self.pages), self.read, dtype=self.keys[0].dtype)  # adds up the pages of a slot
        self.shares[self.owners[: self.count], torch.arange(self.count)] = 1
        tokens = torch.arange(longest * _PAGE)
        bias = torch.zeros(len(self.pages), 1, longest * _PAGE, dtype=self.keys[0].dtype)
        self.bias = bias.masked_fill_((tokens > self.positions[:, None])[:, None], float("-inf"))
        self.page, self.offset = torch.tensor([pages[-1] for pages in self.pages]), self.positions % _PAGE

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention (slots, heads * D) of one token in every slot, whose keys and values are added."""
        slots, groups = len(query), self.heads // self.kv_heads
        keys, values = self.keys[layer], self.values[layer]
        keys[self.page, :, self.offset] = key
        values[self.page, :, :, self.offset] = value
        query = query.flatten(1).index_select(0, self.owners).view(-1, groups, self.width)
        scores = torch.bmm(query, keys[: self.read].flatten(0, 1).transpose(1, 2)).view(self.read, -1)
        scores = scores.index_select(0, self.table).view(slots, -1, self.heads, _PAGE).transpose(1, 2)
        weights = scores.reshape(slots, self.heads, -1).add_(self.bias).softmax(-1)
        weights = weights.view(slots, self.heads, -1, _PAGE).transpose(1, 2).reshape(len(self.table), -1)
        weights = weights.index_select(0, self.places).view(-1, groups, _PAGE)
        return self.shares @ torch.bmm(weights, values[: self.read].flatten(0, 1).transpose(1, 2)).view(self.read, -1)

    def _new_page(self, slot: int) -> int:
        self.pages[slot].append(self.count)
        self.count += 1
        return self.count - 1

    def _release(self, slots: list[int]) -> None:
        free = sorted(page for slot in slots for page in self.pages[slot])
        for slot in slots:
            self.pages[slot] = []
        self.count -= len(free)
        holes = [page for page in free if page < self.count]
        if not holes:
            return
        last = {}
        for pages in self.pages:
            for place, page in enumerate(pages):
                if page >= self.count:
                    last[page] = pages, place
        for (pages, place), hole in zip(last.values(), holes, strict=True):
            pages[place] = hole
        for pool in (*self.keys, *self.values):
            pool[holes] = pool[list(last)]

    def _reserve(self, like: Prompts | None = None) -> None:
        """Grow the pools to hold the pages in use."""
        if not self.keys:
            self.keys = [grid.new_zeros(0, self.kv_heads, _PAGE, self.width) for grid in like.keys]
            self.values = [grid.new_zeros(0, self.kv_heads, self.width, _PAGE) for grid in like.values]
        missing = self.count - len(self.keys[0])
        if missing > 0:
            grown = max(missing, len(self.keys[0]) // 4, _PAGES_STEP)
            for pools in (self.keys, self.values):
                pools[:] = [pad(pool, (0, 0, 0, 0, 0, 0, 0, grown)) for pool in pools]


def _in_pages(grid: Tensor) -> Tensor:
    """(N, pages, kv_heads, 64, D) of (N, P, kv_heads, D)."""
    grid = pad(grid, (0, 0, 0, 0, 0, -grid.shape[1] % _PAGE))
    return grid.unflatten(1, (-1, _PAGE)).transpose(2, 3)


class StaticCache:
    """Keys and values (slots, kv_heads, length, D) per layer; attention masks the positions that are not yet written.

    Until the cache grows, every token runs the same kernels on the same memory, as a CUDA graph needs.
    """

    def __init__(self, decoder: Decoder, slots: int):
        self.kv_heads, self.width = decoder.kv_heads, decoder.head_dim
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.slots = torch.arange(slots, device=decoder.device)
        self.positions = torch.zeros(slots, dtype=torch.long, device=decoder.device)  # of the next token
        self.moves = torch.ones_like(self.positions)  # 0 for slots at rest
        self.bounds = [0] * slots  # `positions`, without a transfer from the device

    def admit(self, slots: list[int], prompts: Prompts, picks: list[int]) -> None:
        """Begin texts in these slots, in place of earlier ones, with `prompts[pick]` for each."""
        for slot, pick in zip(slots, picks, strict=True):
            self.bounds[slot] = prompts.lengths[pick]
        self._reserve(prompts)
        at, pick = torch.tensor([slots, picks], device=self.slots.device)
        self.positions[at] = torch.tensor(prompts.lengths, device=at.device)[pick] - 1
        self.moves[at] = 1
        for caches, grids in ((self.keys, prompts.keys), (self.values, prompts.values)):
            for part, grid in zip(caches, grids, strict=True):
                part[at, :, : grid.shape[1]] = grid[pick].transpose(1, 2)

    def rest(self, slots: list[int]) -> None:
        """Let these slots write to their first position until they are needed."""
        self.positions[slots] = self.moves[slots] = 0
        for slot in slots:
            self.bounds[slot] = 0

    def keep(self, slots: list[int]) -> None:
        """Continue with these slots only."""
        self.positions, self.moves = self.positions[slots], self.moves[slots]
        self.slots, self.bounds = self.slots[: len(slots)], [self.bounds[slot] for slot in slots]
        self.keys, self.values = ([part[slots] for part in parts] for parts in (self.keys, self.values))
        self.bias = self.bias[slots]

    def advance(self) -> None:
        """Make room for one more token in every slot."""
        self.reserve_next()
        self.move()

    def reserve_next(self) -> None:
        """The part of `advance` that may allocate."""
        self.bounds = [bound + 1 for bound in self.bounds]
        self._reserve()

    def move(self) -> None:
        """The part of `advance` that runs on the device."""
        self.positions += self.moves
        tokens = torch.arange(self.keys[0].shape[2], device=self.slots.device)
        self.bias.zero_().masked_fill_(tokens > self.positions[:, None, None, None], float("-inf"))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention (slots, heads * D) of one token in every slot, whose keys and values are added."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.slots, :, self.positions] = key
        values[self.slots, :, self.positions] = value
        query = query.reshape(len(query), self.kv_heads, -1, self.width)  # the queries of a group as rows
        return scaled_dot_product_attention(query, keys, values, self.bias, scale=1.0).flatten(1)

    def _reserve(self, like: Prompts | None = None) -> None:
        if not self.keys:
            shape = len(self.slots), self.kv_heads, 0, self.width
            self.keys, self.values = ([grid.new_zeros(shape) for grid in grids] for grids in (like.keys, like.values))
        length = max(max(self.bounds), like.keys[0].shape[1] if like else 0)
        if length > self.keys[0].shape[2]:
            grown = -(-length // _LENGTH_STEP) * _LENGTH_STEP - self.keys[0].shape[2]
            for caches in (self.keys, self.values):
                caches[:] = [pad(part, (0, 0, 0, grown)) for part in caches]
            shape = len(self.slots), 1, 1, self.keys[0].shape[2]
            self.bias = self.keys[0].new_zeros(shape)


class CapturedStep:
    """`Decoder.step` with a `StaticCache` as a CUDA graph, captured anew when the cache has another shape."""

    def __init__(self, decoder: Decoder, cache: StaticCache):
        self.decoder, self.cache, self.captured = decoder, cache, None

    def __call__(self, tokens: Tensor) -> Tensor:
        self.cache.reserve_next()
        if self.captured is not self.cache.bias:
            self._capture(tokens)
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.logits

    def _capture(self, tokens: Tensor) -> None:
        self.tokens, self.captured = tokens.clone(), self.cache.bias
        self.graph = self.logits = None  # frees their memory
        positions = self.cache.positions.clone()
        stream = _capture_stream(tokens.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what kernels set up when they first run must not be captured
            for _ in range(2):
                self._run()
                self.cache.positions.copy_(positions)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.logits = self._run()

    def _run(self) -> Tensor:
        self.cache.move()
        return self.decoder.next_logits(self.tokens, self.cache)


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Always the same: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)
