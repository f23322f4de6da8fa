"""Decides on row numbers which rows are used and where: duplicates, the split, the shares and the order.

All randomness is a hash of the row's content and a seed. So the side of a row, the samples and their order are the same
in every process, whatever is added, removed or reordered around the row.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from ..errors import MixtureError
from .config import Mixture, Source, Validation

TRAIN, VALIDATION = 0, 1
LEAKED = "also among the validation rows"
_BEYOND_SHARE = "beyond its share"
# Independent draws from one seed.
_SPLIT, _SAMPLE, _ORDER = 1, 2, 3


@dataclass
class Pool:
    """All rows of all sources, one entry each, and what becomes of them.

    Attributes:
        source: index of the row's source in the mixture.
        held_out: whether the source itself holds the row out.
        key, group, tokens: as in `rows.FACTS`.
        outcome: `TRAIN` (initially), `VALIDATION`, or the number of the reason for which the row is dropped.
        outcomes: their names.
    """

    source: np.ndarray
    held_out: np.ndarray
    key: np.ndarray
    group: np.ndarray
    tokens: np.ndarray
    outcome: np.ndarray
    outcomes: list[str] = field(default_factory=lambda: ["train", "validation"])

    @property
    def live(self) -> np.ndarray:
        return self.outcome <= VALIDATION

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """Drop rows (a mask or indices) under a reason."""
        if reason not in self.outcomes:
            self.outcomes.append(reason)
        self.outcome[rows] = self.outcomes.index(reason)

    def reasons_of(self, source: int, held_out: bool | None = None) -> dict[str, int]:
        """Dropped rows of a source by reason, most frequent first."""
        rows = self.source == source
        if held_out is not None:
            rows &= self.held_out == held_out
        counts = np.bincount(self.outcome[rows], minlength=len(self.outcomes))
        dropped = {name: int(count) for name, count in zip(self.outcomes, counts, strict=True) if count}
        dropped = {name: count for name, count in dropped.items() if name not in ("train", "validation")}
        return dict(sorted(dropped.items(), key=lambda item: -item[1]))


def drop_duplicates(pool: Pool, mixture: Mixture) -> None:
    """Keep one row of each content, from the first source by name, so that the order of sources does not matter."""
    rank = np.argsort(_by_name(mixture.datasets))
    live = np.flatnonzero(pool.live)
    order = live[np.lexsort((rank[pool.source[live]], ~pool.held_out[live], pool.key[live]))]
    keys = pool.key[order]
    again = keys[1:] == keys[:-1]
    pool.drop(order[1:][again], "duplicate")


def drop_leaks(pool: Pool) -> None:
    """Drop training rows that a source also holds out, or whose prompt it holds out."""
    held_out = np.unique(pool.group[pool.live & pool.held_out])
    if len(held_out):
        pool.drop(pool.live & ~pool.held_out & np.isin(pool.group, held_out), LEAKED)


def split(pool: Pool, mixture: Mixture) -> None:
    """Put each row on its side by the hash of its content and the seed of the split; without a split, all train."""
    if mixture.validation is None:
        return
    hashed = is_held_out(pool.group, mixture.validation)
    has_own = np.isin(pool.source, np.unique(pool.source[pool.held_out]))
    pool.outcome[pool.live & np.where(has_own, pool.held_out, hashed)] = VALIDATION
    # A source with validation rows of its own trains on all others, unless another source's equal row is held out.
    suspects = (pool.outcome == TRAIN) & has_own & hashed
    if np.any(suspects):
        pool.drop(suspects & np.isin(pool.group, pool.group[pool.outcome == VALIDATION]), LEAKED)


def is_held_out(group: np.ndarray, rule: Validation) -> np.ndarray:
    """Whether rows fall into the validation split."""
    return _mixed(group, rule.seed, _SPLIT) < np.uint64(rule.ratio * 2**64)


def sample_sources(pool: Pool, mixture: Mixture) -> None:
    """Keep `max_samples` random rows of a source."""
    for index, source in enumerate(mixture.datasets):
        rows = np.flatnonzero(pool.live & ~pool.held_out & (pool.source == index))
        if source.max_samples is not None and len(rows) > source.max_samples:
            pool.drop(_drawn(pool, rows, mixture.seed)[source.max_samples :], "beyond max_samples")


def share_train(pool: Pool, mixture: Mixture, count_tokens: bool) -> np.ndarray:
    """Row numbers of the training split, repetitions included, in the order of training.

    Raises:
        MixtureError: a source has no row left, or cannot fill its share of the requested size.
    """
    ordered = [_drawn(pool, _rows_of(pool, i, TRAIN), mixture.seed) for i in range(len(mixture.datasets))]
    capacities = [len(rows) * source.max_repetition for rows, source in zip(ordered, mixture.datasets, strict=True)]
    if empty := [source.name for source, rows in zip(mixture.datasets, ordered, strict=True) if not len(rows)]:
        raise MixtureError(f"datasets.{empty[0]}: no training row is left")
    size = _size_in_rows(mixture, _largest_size(capacities, mixture.datasets), capacities)
    size = _size_in_tokens(pool, mixture, ordered, size, count_tokens)
    counts = _counts(size, mixture.datasets)
    for source, count in zip(mixture.datasets, counts, strict=True):
        if count == 0:
            raise MixtureError(
                f"datasets.{source.name}: its share {source.mix_ratio:g} of {size} rows is less than one row; "
                "make the mixture larger or leave the source out"
            )
    return _taken(pool, mixture, ordered, counts, TRAIN, mixture.seed)


def share_validation(pool: Pool, mixture: Mixture) -> np.ndarray:
    """Row numbers of the validation split, without repetitions; if stratified, sources have their shares.

    Raises:
        MixtureError: it is empty, although the mixture holds rows out.
    """
    if mixture.validation is None:
        return np.empty(0, dtype=np.int64)
    seed = mixture.validation.seed
    ordered = [_drawn(pool, _rows_of(pool, i, VALIDATION), seed) for i in range(len(mixture.datasets))]
    counts = [len(rows) for rows in ordered]
    if not sum(counts):
        raise MixtureError(
            f"the validation split is empty: validation.ratio {mixture.validation.ratio:g} holds none of the rows "
            "out; raise the ratio, add rows, or set validation: none to train without a held-out part"
        )
    if mixture.validation.stratified:
        counts = _stratified(counts, mixture)
    return _taken(pool, mixture, ordered, counts, VALIDATION, seed)


def _stratified(available: list[int], mixture: Mixture) -> list[int]:
    empty = [source.name for source, count in zip(mixture.datasets, available, strict=True) if not count]
    if empty:
        raise MixtureError(
            f"the validation split has no row of {', '.join(empty)}; raise validation.ratio, or set "
            "validation.stratified to false; validation: none trains without a held-out part"
        )
    counts = _counts(_largest_size(available, mixture.datasets), mixture.datasets)
    # With a share of less than one row a source would not be measured.
    return [max(count, 1) for count in counts]


def largest_remainder(size: int, ratios: list[float]) -> list[int]:
    """Integers that sum to `size`, each as close to its share as possible (Hamilton's method).

    The ratios are normalised. The first of equal remainders is rounded up.
    """
    exact = [size * share for share in _shares(ratios)]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(ratios)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    return counts


def _shares(ratios: list[float]) -> list[Fraction]:
    # Exact as written: in binary the remainders of 0.15 and 0.85 differ, and seven sevenths are not one.
    written = [Fraction(str(ratio)) for ratio in ratios]
    exact = [ratio.limit_denominator(10**12) or ratio for ratio in written]
    return [ratio / sum(exact) for ratio in exact]


def _counts(size: int, sources: list[Source]) -> list[int]:
    """Rows of each source; equal remainders are rounded up by name, so that the order of sources does not matter."""
    by_name = _by_name(sources)
    counts = largest_remainder(size, [sources[i].mix_ratio for i in by_name])
    return [count for _, count in sorted(zip(by_name, counts, strict=True))]


def _by_name(sources: list[Source]) -> list[int]:
    return sorted(range(len(sources)), key=lambda i: sources[i].name)


def _largest_size(capacities: list[int], sources: list[Source]) -> int:
    """The largest size at which every source can fill its share; it can then fill the rounded share too."""
    shares = _shares([source.mix_ratio for source in sources])
    return min(int(have / share) for have, share in zip(capacities, shares, strict=True))


def _size_in_rows(mixture: Mixture, largest: int, capacities: list[int]) -> int:
    wanted = mixture.size.rows if mixture.size else None
    if wanted is None:
        return largest
    if wanted > largest:
        raise MixtureError(_out_of_reach(mixture, f"size.rows {wanted}", f"{largest} rows", capacities))
    return wanted


def _size_in_tokens(pool: Pool, mixture: Mixture, ordered: list[np.ndarray], largest: int, count_tokens: bool) -> int:
    """The most rows whose tokens stay within the budget."""
    demanded = mixture.size.tokens if mixture.size else None
    budget = demanded or mixture.metadata.total_tokens
    if demanded and not count_tokens:
        raise MixtureError(f"size.tokens {demanded}: no tokenizer was given to count them")
    if budget is None or not count_tokens:
        return largest
    sums = [np.concatenate([[0], np.cumsum(pool.tokens[rows], dtype=np.int64)]) for rows in ordered]

    def tokens(counts: list[int]) -> int:
        rounds = (divmod(count, len(total) - 1) for count, total in zip(counts, sums, strict=True))
        return sum(int(whole * total[-1] + total[rest]) for (whole, rest), total in zip(rounds, sums, strict=True))

    reached = tokens(_counts(largest, mixture.datasets))
    if demanded and reached < demanded:
        capacities = [len(rows) * s.max_repetition for rows, s in zip(ordered, mixture.datasets, strict=True)]
        raise MixtureError(
            _out_of_reach(mixture, f"size.tokens {demanded}", f"{reached} tokens ({largest} rows)", capacities)
        )
    if reached <= budget:
        return largest
    # One row more in total can mean one less for a source (the Alabama paradox), and fewer tokens. The tokens of shares
    # that are rounded down never fall: they give the first size that does not fit, and a few steps down one that does.
    shares = _shares([source.mix_ratio for source in mixture.datasets])
    size = bisect_right(range(largest), budget, key=lambda size: tokens([int(size * share) for share in shares])) - 1
    while tokens(_counts(size, mixture.datasets)) > budget:
        size -= 1
    if size == 0:
        raise MixtureError(f"{budget} tokens are less than the first row has; raise the budget")
    return size


def _out_of_reach(mixture: Mixture, wanted: str, reached: str, capacities: list[int]) -> str:
    binding = min(range(len(capacities)), key=lambda i: capacities[i] / mixture.datasets[i].mix_ratio)
    source = mixture.datasets[binding]
    return (
        f"{wanted} is out of reach: datasets.{source.name} has {capacities[binding] // source.max_repetition} training "
        f"rows, times max_repetition {source.max_repetition}, for a share of {source.mix_ratio:g}; "
        f"the largest size is {reached}. Lower the size or its mix_ratio, or raise its max_repetition"
    )


def _rows_of(pool: Pool, source: int, side: int) -> np.ndarray:
    return np.flatnonzero((pool.source == source) & (pool.outcome == side))


def _taken(
    pool: Pool, mixture: Mixture, ordered: list[np.ndarray], counts: list[int], side: int, seed: int
) -> np.ndarray:
    """The first rows of each source, cycling through it if it is repeated; the others are dropped and counted."""
    parts = [np.empty(0, dtype=np.int64)]
    for i in _by_name(mixture.datasets):
        rows, count = ordered[i], counts[i]
        parts.append(np.resize(rows, count))
        pool.drop(rows[count:], _BEYOND_SHARE if side == TRAIN else f"validation: {_BEYOND_SHARE}")
    return _shuffled(pool, np.concatenate(parts), seed, _ORDER)


def _drawn(pool: Pool, rows: np.ndarray, seed: int) -> np.ndarray:
    return _shuffled(pool, rows, seed, _SAMPLE)


def _shuffled(pool: Pool, rows: np.ndarray, seed: int, use: int) -> np.ndarray:
    return rows[in_random_order(pool.key[rows], seed, use)]


def in_random_order(keys: np.ndarray, seed: int, use: int = _ORDER) -> np.ndarray:
    """Indices in the order of hashes of the keys; equal keys get different hashes, so that equal rows are spread."""
    return np.argsort(_mixed(keys + _occurrence(keys), seed, use), kind="stable")


def _occurrence(keys: np.ndarray) -> np.ndarray:
    """For each key, how many equal ones come before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))[: len(keys)]
    found = np.empty(len(keys), dtype=np.uint64)
    found[order] = np.arange(len(keys)) - np.repeat(starts, np.diff(starts, append=len(keys)))
    return found


def _mixed(hashes: np.ndarray, seed: int, use: int) -> np.ndarray:
    """Hash of a hash, a seed and a use: the finaliser of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = hashes + np.uint64((4 * seed + use) * 0x9E3779B97F4A7C15 % 2**64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
