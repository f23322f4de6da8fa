"""A decoding loop for many short answers, for transformers' `generate(custom_generate=sample)`.

It differs from transformers' own in five ways. Weights are prepared once for products of few rows. The key-value cache
is not copied for every token. An answer that ends makes room for the next prompt (continuous batching). One random
number is drawn per token, not one for each entry of the vocabulary. On a GPU a step is one CUDA graph. Samples have the
same distribution; greedy answers are the same up to rounding.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList, MinPLogitsWarper, PreTrainedConfig, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, GenerationMode, MaxLengthCriteria, StopStringCriteria

from .decoder import Decoder, Prompts, can_decode
from .key_value_caches import CapturedStep, PagedCache, StaticCache

_TOKENS_READ = 4096  # of prompts at a time
_BLOCK = 64  # tokens of the vocabulary
_CPU = torch.device("cpu")


def draw_by_inversion(scores: Tensor) -> Tensor:
    """Inverse transform sampling: one uniform number per row, where most time goes into random numbers.

    First a block of the vocabulary, then a token in it: sums of all tokens in float64 would cost several times as much.
    """
    weights = pad(scores.softmax(-1), (0, -scores.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    sums = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    block, place = _search(sums, torch.rand_like(sums[:, :1]) * sums[:, -1:])
    sums = weights.take_along_dim(block[..., None], 1)[:, 0].cumsum(-1, dtype=torch.float64)
    return (block * _BLOCK + _search(sums, place)[0])[:, 0]


def _search(sums: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The interval between cumulative sums (B, N) in which a place (B, 1) lies, and the place from its beginning."""
    place = place.minimum(sums[:, -1:].nextafter(sums.new_zeros(1)))  # an interval of width 0 is never found
    index = torch.searchsorted(sums, place, right=True)
    return index, place - pad(sums, (1, 0)).take_along_dim(index, 1)


def draw_by_race(scores: Tensor) -> Tensor:
    """The token whose exponential clock of rate softmax(scores) rings first: few kernels, where their launch counts."""
    weights = scores.softmax(-1)
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)


@dataclass(frozen=True)
class _Engine:
    """How a kind of device generates.

    Attributes:
        cache: class of the key-value cache.
        step: given a decoder and a cache, makes the function from tokens (slots,) to the next logits (slots, V).
        draw: draws tokens (slots,) from softmax(scores) for scores (slots, V).
        slots: answers at a time.
        interval: tokens between two looks at which answers have ended; a look waits for a GPU.
        most_kept: share of the slots in use up to which the unused ones are removed from the batch.
    """

    cache: type
    step: Callable
    draw: Callable[[Tensor], Tensor]
    slots: int
    interval: int
    most_kept: float


def _eager_step(decoder: Decoder, cache) -> Callable[[Tensor], Tensor]:
    return partial(decoder.step, cache=cache)


_ENGINES = {
    "cpu": _Engine(PagedCache, _eager_step, draw_by_inversion, slots=64, interval=1, most_kept=15 / 16),
    "cuda": _Engine(StaticCache, CapturedStep, draw_by_race, slots=256, interval=16, most_kept=1 / 4),
}


def can_sample(config: PreTrainedConfig, generation_config: GenerationConfig, device: torch.device = _CPU) -> bool:
    """Whether `sample` supports the model on the device, and the generation mode: sampling or greedy search.

    A configured cache implementation leaves generation to transformers.
    """
    modes = (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
    own_cache = generation_config.cache_implementation is None
    return can_decode(config, device) and own_cache and generation_config.get_generation_mode() in modes


@torch.no_grad()
def sample(
    model: nn.Module,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    slots: int | None = None,
    **inputs: Any,
) -> Tensor:
    """Prompts with their completions (B, P + T), padded after the end-of-sequence token.

    The signature is that of transformers' decoding methods. Logits processors and stopping criteria see some of the
    texts at a time, padded on the left, so they must not keep state per row. Where one does not support continuous
    batching, all rows are generated at once, and those that it sees have equally many new tokens.

    Args:
        input_ids: left-padded prompts (B, P); `inputs["attention_mask"]` is 0 for padding.
        slots: answers at a time; the default depends on the device.
    """
    engine, mask = _ENGINES[input_ids.device.type], inputs.get("attention_mask")
    if not _allow_refills(logits_processor, stopping_criteria):
        slots = len(input_ids)
    slots = min(slots or engine.slots, len(input_ids))
    decoder = Decoder(model, generation_config.max_length + engine.interval)
    queue = _Queue(decoder, input_ids, torch.ones_like(input_ids) if mask is None else mask)
    answers = _Answers(input_ids, slots, engine.interval, stopping_criteria, generation_config)
    cache = engine.cache(decoder, slots)
    step, free = engine.step(decoder, cache), list(range(slots))
    logits = decoder.logits(decoder.embed_tokens(input_ids[:slots, -1]))  # of the right shape and type
    for number in count(1):
        for prompts, rows, picks in queue.take(len(free)):
            begun, free = free[: len(rows)], free[len(rows) :]
            cache.admit(begun, prompts, picks)
            answers.begin(begun, rows)
            logits[begun] = prompts.logits[picks]
        scores = logits_processor(answers.ids, logits.float()) if logits_processor else logits.float()
        tokens = engine.draw(scores) if generation_config.do_sample else scores.argmax(-1)
        answers.add(tokens, scores)
        free = answers.ended.nonzero()[:, 0].tolist() if number % engine.interval == 0 else []
        if free and not queue.rows:
            left = sorted(set(range(len(tokens))) - set(free))
            if not left:
                return answers.texts()
            if len(left) <= engine.most_kept * len(tokens):
                free, tokens = [], tokens[left]
                cache.keep(left)
                answers.keep(left)
            else:
                cache.rest(free)
        logits = step(tokens)


def _allow_refills(processors: LogitsProcessorList, criteria: StoppingCriteriaList) -> bool:
    """Whether texts in a batch may have different numbers of new tokens."""
    kinds = EosTokenCriteria, MaxLengthCriteria, StopStringCriteria
    known = all(
        getattr(one, "supports_continuous_batching", None) or isinstance(one, MinPLogitsWarper) for one in processors
    )
    return known and all(isinstance(one, kinds) for one in criteria)


class _Queue:
    """Prompts that wait for a slot. Equal ones, such as those of a GRPO group, follow each other and are read once."""

    def __init__(self, decoder: Decoder, ids: Tensor, mask: Tensor):
        self.decoder = decoder
        self.prompts = [tuple(row) for row in _unpadded(ids, mask)]
        order = {prompt: index for index, prompt in enumerate(dict.fromkeys(self.prompts))}
        self.rows = deque(sorted(range(len(ids)), key=lambda row: order[self.prompts[row]]))
        self.read: Prompts | None = None
        self.picks: dict[tuple[int, ...], int] = {}  # by prompt, its place in `read`

    def take(self, number: int) -> Iterator[tuple[Prompts, list[int], list[int]]]:
        """Prompts for so many slots, as long as there are any: what was read, the rows, and their places in it."""
        while number and self.rows:
            if self.prompts[self.rows[0]] not in self.picks:
                self._read()
            rows = []
            while len(rows) < number and self.rows and self.prompts[self.rows[0]] in self.picks:
                rows.append(self.rows.popleft())
            number -= len(rows)
            yield self.read, rows, [self.picks[self.prompts[row]] for row in rows]

    def _read(self) -> None:
        tokens, prompts = 0, []
        for prompt in dict.fromkeys(self.prompts[row] for row in self.rows):
            tokens += len(prompt)
            if prompts and tokens > _TOKENS_READ:
                break
            prompts.append(prompt)
        self.read = None  # frees its memory
        self.read, self.picks = self.decoder.read(prompts), {prompt: pick for pick, prompt in enumerate(prompts)}


def _unpadded(ids: Tensor, mask: Tensor) -> Iterator[list[int]]:
    for row, tokens in zip(ids.tolist(), mask.bool().tolist(), strict=True):
        yield [token for token, is_token in zip(row, tokens, strict=True) if is_token]


class _Answers:
    """The texts of all rows, and the rows that are in slots."""

    def __init__(self, prompts: Tensor, slots: int, spare: int, criteria, config: GenerationConfig):
        self.fill = 0 if config.pad_token_id is None else config.pad_token_id
        self.all = prompts.new_full((len(prompts), config.max_length + spare), self.fill)
        self.all[:, : prompts.shape[1]] = prompts
        self.lengths = prompts.new_full((len(prompts),), prompts.shape[1])  # of all rows, with padding on the left
        self.rows = prompts.new_zeros(slots)
        self.ends = prompts.new_zeros(slots)  # where the next token is written
        self.ended = torch.ones_like(self.rows, dtype=torch.bool)
        self.bounds = [0] * slots  # `ends`, without a transfer from the device
        self.prompt_length, self.max_length = prompts.shape[1], config.max_length
        self.token_criteria = StoppingCriteriaList(one for one in criteria if isinstance(one, EosTokenCriteria))
        kinds = EosTokenCriteria, MaxLengthCriteria
        self.text_criteria = StoppingCriteriaList(one for one in criteria if not isinstance(one, kinds))

    @property
    def ids(self) -> Tensor:
        """The texts in the slots (slots, longest), padded on the left."""
        width = min(max(self.bounds), self.all.shape[1])
        places = self.ends[:, None] - width + torch.arange(width, device=self.ends.device)
        return self.all[self.rows].take_along_dim(places.clamp(min=0), 1)

    def begin(self, slots: list[int], rows: list[int]) -> None:
        """Put rows into these slots."""
        self.lengths[self.rows] = self.ends
        self.rows[slots] = torch.tensor(rows, device=self.rows.device)
        self.ends[slots], self.ended[slots] = self.prompt_length, False
        for slot in slots:
            self.bounds[slot] = self.prompt_length

    def add(self, tokens: Tensor, scores: Tensor) -> None:
        """Append tokens (slots,) to the rows that have not ended, and find those that have."""
        self.all[self.rows, self.ends] = tokens.masked_fill(self.ended, self.fill)
        self.ends = self.ends + ~self.ended
        self.bounds = [bound + 1 for bound in self.bounds]
        self.ended = self.ended | self.token_criteria(tokens[:, None], scores) | (self.ends >= self.max_length)
        if self.text_criteria:
            self.ended = self.ended | self.text_criteria(self.ids, scores).bool()

    def keep(self, slots: list[int]) -> None:
        """Go on with these slots only."""
        self.lengths[self.rows] = self.ends
        self.rows, self.ends, self.ended = self.rows[slots], self.ends[slots], self.ended[slots]
        self.bounds = [self.bounds[slot] for slot in slots]

    def texts(self) -> Tensor:
        """All rows (B, P + T)."""
        self.lengths[self.rows] = self.ends
        return self.all[:, : int(self.lengths.max())]
