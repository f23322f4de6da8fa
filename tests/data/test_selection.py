"""Which rows are taken, checked on small arrays against counting by hand and against trying every possibility."""

import itertools
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from minimind_trl.data import MixtureError
from minimind_trl.data.config import Mixture
from minimind_trl.data.selection import (
    TRAIN,
    VALIDATION,
    Pool,
    drop_duplicates,
    drop_leaks,
    largest_remainder,
    sample_sources,
    share_train,
    share_validation,
    split,
)

HASHES = np.random.default_rng(0).integers(0, 2**64, size=50_000, dtype=np.uint64)  # of contents 0, 1, 2, ...


def mixture(ratios: dict[str, float], total_tokens=None, sources=None, **extra) -> Mixture:
    """Sources by name and share; `sources` has further fields of some of them."""
    datasets = [
        {"name": name, "source": f"{name}.jsonl", "mix_ratio": ratio, **(sources or {}).get(name, {})}
        for name, ratio in ratios.items()
    ]
    metadata = {"phase": "pretrain", "total_tokens": total_tokens}
    return Mixture.model_validate({"metadata": metadata, "datasets": datasets, **extra})


def pool_of(*sizes: int, keys=None, groups=None, held_out=(), tokens=None) -> Pool:
    """Sources of so many rows each, all different unless `keys` says otherwise."""
    count = sum(sizes)
    keys = np.arange(count) if keys is None else keys
    keys = HASHES[keys]
    return Pool(
        source=np.repeat(np.arange(len(sizes), dtype=np.int16), sizes),
        held_out=np.isin(np.arange(count), held_out),
        key=keys,
        group=keys.copy() if groups is None else np.asarray(groups, dtype=np.uint64),
        tokens=np.ones(count, dtype=np.uint32) if tokens is None else np.asarray(tokens, dtype=np.uint32),
        outcome=np.zeros(count, dtype=np.int16),
    )


def of_sources(pool: Pool, taken: np.ndarray) -> list[int]:
    """How many rows of each source were taken."""
    return np.bincount(pool.source[taken], minlength=pool.source.max() + 1).tolist()


def reasons(pool: Pool) -> dict[str, int]:
    return dict(Counter(pool.outcomes[outcome] for outcome in pool.outcome if outcome > VALIDATION))


# Shares


@pytest.mark.parametrize(
    ("size", "ratios", "counts"),
    [
        (10, [0.5, 0.3, 0.2], [5, 3, 2]),
        (11, [0.5, 0.3, 0.2], [6, 3, 2]),  # 5.5, 3.3, 2.2
        (3, [0.5, 0.5], [2, 1]),  # of equal remainders the first is rounded up
        (30, [0.15, 0.85], [5, 25]),  # 4.5 and 25.5, equal though not in binary
        (10, [1 / 3, 1 / 3, 1 / 3], [4, 3, 3]),
        (14, [2 / 7, 5 / 7], [4, 10]),
        (3, [0.333, 0.333, 0.333], [1, 1, 1]),  # sums to 0.999
        (1000, [0.334, 0.334, 0.333], [334, 333, 333]),  # sums to 1.001: 333.67, 333.67, 332.67
        (1, [0.1, 0.9], [0, 1]),
        (0, [0.1, 0.9], [0, 0]),
        (10**15, [0.1, 0.2, 0.7], [10**14, 2 * 10**14, 7 * 10**14]),
    ],
)
def test_largest_remainder(size, ratios, counts):
    assert largest_remainder(size, ratios) == counts


def test_no_other_whole_numbers_are_closer_to_the_shares():
    rng = random.Random(0)
    for _ in range(100):
        weights = [rng.randint(1, 20) for _ in range(rng.randint(1, 3))]
        size = rng.randint(0, 12)
        exact = [Fraction(size * weight, sum(weights)) for weight in weights]
        counts = largest_remainder(size, [weight / sum(weights) for weight in weights])
        every = (c for c in itertools.product(range(size + 1), repeat=len(weights)) if sum(c) == size)
        off = [sum(abs(count - share) for count, share in zip(c, exact, strict=True)) for c in every]
        mine = sum(abs(count - share) for count, share in zip(counts, exact, strict=True))
        assert sum(counts) == size and float(mine) == pytest.approx(float(min(off)))


def test_the_mixture_is_as_large_as_its_scarcest_source_allows():
    pool = pool_of(100, 30)
    taken = share_train(pool, mixture({"a": 0.5, "b": 0.5}), count_tokens=False)
    assert of_sources(pool, taken) == [30, 30]
    assert len(set(taken)) == 60
    assert reasons(pool) == {"beyond its share": 70}
    assert pool.reasons_of(0) == {"beyond its share": 70} and pool.reasons_of(1) == {}


def test_the_largest_size_is_found_for_any_ratios():
    rng = random.Random(1)
    for _ in range(200):
        sizes = [rng.randint(1, 40) for _ in range(rng.randint(1, 4))]
        weights = [rng.randint(1, 9) for _ in sizes]
        ratios = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
        limits = [have * sum(weights) for have in sizes]
        fits = [n for n in range(200) if all(n * w <= limit for w, limit in zip(weights, limits, strict=True))]
        pool, wanted = pool_of(*sizes), max(fits)
        if min(largest_remainder(wanted, list(ratios.values()))) == 0:
            continue
        taken = share_train(pool, mixture(ratios), count_tokens=False)
        assert len(taken) == wanted
        assert of_sources(pool, taken) == largest_remainder(len(taken), list(ratios.values()))


def test_a_source_is_repeated_in_whole_rounds_and_no_more_often_than_allowed():
    pool = pool_of(10, 90)
    taken = share_train(pool, mixture({"a": 0.25, "b": 0.75}, sources={"a": {"max_repetition": 3}}), count_tokens=False)
    assert of_sources(pool, taken) == [30, 90]
    copies = Counter(taken[pool.source[taken] == 0].tolist())
    assert set(copies) == set(range(10)) and set(copies.values()) == {3}

    pool = pool_of(10, 60)  # b is the scarce one now: 20 rows of a, each twice
    share = mixture({"a": 0.25, "b": 0.75}, sources={"a": {"max_repetition": 3}})
    taken = share_train(pool, share, count_tokens=False)
    assert of_sources(pool, taken) == [20, 60]
    assert set(Counter(taken[pool.source[taken] == 0].tolist()).values()) == {2}


def test_a_partial_round_repeats_different_rows_at_most_once_more():
    pool = pool_of(10, 25)
    share = mixture({"a": 0.375, "b": 0.625}, sources={"a": {"max_repetition": 4}})
    copies = Counter(share_train(pool, share, count_tokens=False)[:].tolist())
    of_a = [copies[row] for row in range(10)]
    assert sum(of_a) == 15 and set(of_a) == {1, 2}


def test_copies_do_not_stay_together():
    pool = pool_of(500)
    share = mixture({"a": 1.0}, sources={"a": {"max_repetition": 2}})
    taken = share_train(pool, share, count_tokens=False)
    assert np.sum(taken[1:] == taken[:-1]) < 10  # 1 is expected

    pool = pool_of(1000, keys=np.repeat(np.arange(500), 2))  # duplicates that `dedup: none` leaves in
    keys = pool.key[share_train(pool, mixture({"a": 1.0}), count_tokens=False)]
    assert np.sum(keys[1:] == keys[:-1]) < 10


def test_a_share_of_less_than_one_row_is_refused():
    with pytest.raises(MixtureError, match=r"datasets\.b: its share 0.001 of 10 rows is less than one row"):
        share_train(pool_of(10, 10), mixture({"a": 0.999, "b": 0.001}), count_tokens=False)


def test_the_source_without_rows_is_named_not_the_first():
    pool = pool_of(10, 10)
    pool.drop(pool.source == 1, "too short")
    with pytest.raises(MixtureError, match=r"datasets\.b: no training row is left"):
        share_train(pool, mixture({"a": 0.5, "b": 0.5}), count_tokens=False)


# Size


def test_size_in_rows():
    pool = pool_of(100, 100)
    taken = share_train(pool, mixture({"a": 0.7, "b": 0.3}, size={"rows": 50}), count_tokens=False)
    assert of_sources(pool, taken) == [35, 15]


def test_a_size_out_of_reach_names_the_scarce_source_and_the_largest_size():
    ratios, repeated = {"a": 0.7, "b": 0.3}, {"b": {"max_repetition": 2}}
    pool = pool_of(1000, 12)
    with pytest.raises(MixtureError) as caught:
        share_train(pool, mixture(ratios, sources=repeated, size={"rows": 81}), count_tokens=False)
    assert "size.rows 81 is out of reach: datasets.b has 12 training rows, times max_repetition 2" in str(caught.value)
    assert "for a share of 0.3; the largest size is 80 rows" in str(caught.value)
    taken = share_train(pool, mixture(ratios, sources=repeated, size={"rows": 80}), count_tokens=False)
    assert of_sources(pool, taken) == [56, 24]


def test_a_token_budget_out_of_reach():
    pool = pool_of(10, 10, tokens=[7] * 20)
    share = mixture({"a": 0.5, "b": 0.5}, size={"tokens": 141})
    with pytest.raises(MixtureError, match=r"size.tokens 141 is out of reach: .* is 140 tokens \(20 rows\)"):
        share_train(pool, share, count_tokens=True)
    assert len(share_train(pool, mixture({"a": 0.5, "b": 0.5}, size={"tokens": 140}), count_tokens=True)) == 20


def test_total_tokens_is_a_limit_and_no_demand():
    """In `size` tokens are demanded; `total_tokens` may be more than there are."""
    pool = pool_of(10, 10, tokens=[7] * 20)
    ratios = {"a": 0.5, "b": 0.5}
    assert len(share_train(pool, mixture(ratios, total_tokens=10**12), count_tokens=True)) == 20
    assert len(share_train(pool, mixture(ratios, total_tokens=100), count_tokens=True)) == 14
    with pytest.raises(MixtureError, match=r"20 tokens|3 tokens are less than the first row has"):
        share_train(pool_of(10, 10, tokens=[7] * 20), mixture(ratios, total_tokens=3), count_tokens=True)


def test_tokens_are_not_counted_without_a_tokenizer():
    ratios = {"a": 1.0}
    assert len(share_train(pool_of(10), mixture(ratios, total_tokens=5), count_tokens=False)) == 10
    with pytest.raises(MixtureError, match=r"size\.tokens 5: no tokenizer was given"):
        share_train(pool_of(10), mixture(ratios, size={"tokens": 5}), count_tokens=False)


def test_token_counts_beyond_32_bits():
    pool = pool_of(10, tokens=[2**32 - 1] * 10)
    budget = 7 * 2**32
    assert len(share_train(pool, mixture({"a": 1.0}, size={"tokens": budget}), count_tokens=True)) == 7


def test_a_token_budget_takes_the_most_rows_that_stay_within_it():
    """Tried against every size, because a source's rows, so the tokens, can fall where the size grows by one."""
    rng = random.Random(2)
    paradoxes = 0
    for _ in range(150):
        sizes = [rng.randint(20, 40) for _ in range(3)]
        weights = [rng.choice([1, 2, 6, 7, 13]) for _ in sizes]
        ratios = {name: weight / sum(weights) for name, weight in zip("abc", weights, strict=True)}
        tokens = [rng.choice([1, 2, 300]) for _ in range(sum(sizes))]
        sources = {"a": {"max_repetition": 2}}

        def tokens_of(size, sizes=sizes, tokens=tokens, ratios=ratios, sources=sources):
            pool = pool_of(*sizes, tokens=tokens)
            try:
                taken = share_train(pool, mixture(ratios, sources=sources, size=size), count_tokens=True)
            except MixtureError:
                return None
            return len(taken), int(np.sum(pool.tokens[taken]))

        every = [found for rows in range(30, 120) if (found := tokens_of({"rows": rows}))]
        if not every:
            continue
        paradoxes += any(after[1] < before[1] for before, after in itertools.pairwise(every))
        budget = rng.randint(min(found[1] for found in every), max(found[1] for found in every))
        if budget > every[-1][1]:
            continue  # out of reach: fewer rows have more tokens
        best = max(found for found in every if found[1] <= budget)
        assert tokens_of({"tokens": budget}) == best
    assert paradoxes > 5


# Validation


def test_stratified_validation_has_the_shares_too():
    pool = pool_of(100, 30)
    pool.outcome[:] = VALIDATION
    taken = share_validation(pool, mixture({"a": 0.25, "b": 0.75}))
    assert of_sources(pool, taken) == [10, 30] and len(set(taken)) == 40
    assert reasons(pool) == {"validation: beyond its share": 90}


def test_every_source_is_in_a_stratified_validation_split():
    pool = pool_of(30, 30)
    pool.outcome[:] = VALIDATION
    assert of_sources(pool, share_validation(pool, mixture({"a": 0.99, "b": 0.01}))) == [30, 1]


def test_validation_that_is_not_stratified_has_every_held_out_row():
    pool = pool_of(100, 30, 5)
    pool.outcome[:135] = VALIDATION
    share = mixture({"a": 0.25, "b": 0.25, "c": 0.5}, validation={"stratified": False})
    assert sorted(share_validation(pool, share)) == list(range(135))


def test_validation_is_never_repeated():
    pool = pool_of(5, 50)
    pool.outcome[:] = VALIDATION
    taken = share_validation(pool, mixture({"a": 0.5, "b": 0.5}, sources={"a": {"max_repetition": 5}}))
    assert of_sources(pool, taken) == [5, 5] and len(set(taken)) == 10


def test_an_empty_validation_split_is_refused():
    ratios = {"a": 0.5, "b": 0.5}
    with pytest.raises(MixtureError, match="the validation split is empty"):
        share_validation(pool_of(5, 5), mixture(ratios))
    pool = pool_of(5, 5)
    pool.outcome[:5] = VALIDATION
    with pytest.raises(MixtureError, match=r"no row of b; raise validation.ratio, or set validation.stratified"):
        share_validation(pool, mixture(ratios))
    assert len(share_validation(pool, mixture(ratios, validation={"stratified": False}))) == 5


# Sampling


def sampled(pool: Pool, count: int, seed: int = 42) -> list[int]:
    pool.outcome[:] = TRAIN
    sample_sources(pool, mixture({"a": 1.0}, sources={"a": {"max_samples": count}}, seed=seed))
    return np.flatnonzero(pool.live).tolist()


def test_max_samples_takes_a_random_sample_and_not_the_head():
    pool = pool_of(1000)
    rows = sampled(pool, 100)
    assert len(rows) == 100 and reasons(pool) == {"beyond max_samples": 900}
    assert 350 < np.mean(rows) < 650 and rows != sampled(pool, 100, seed=43)
    assert set(rows) < set(sampled(pool, 200))  # a larger sample has the smaller one in it


def test_a_sample_is_uniform():
    """Over 400 seeds each of 50 rows is in a sample of 20 about 160 times (standard deviation 9.8)."""
    pool = pool_of(50)
    times = Counter(row for seed in range(400) for row in sampled(pool, 20, seed))
    assert min(times[row] for row in range(50)) > 110 and max(times.values()) < 210
    chi_square = sum((times[row] - 160) ** 2 / (400 * 0.4 * 0.6) for row in range(50))
    assert 20 < chi_square < 95  # 50 degrees of freedom, one lost: 49 expected, standard deviation 10


def test_a_sample_leaves_rows_alone_that_the_source_holds_out():
    pool = pool_of(100, held_out=range(20))
    assert set(range(20)) < set(sampled(pool, 10)) and len(sampled(pool, 10)) == 30


# The split


def side(count: int, ratio: float, seed: int) -> np.ndarray:
    pool = pool_of(count)
    split(pool, mixture({"a": 1.0}, validation={"ratio": ratio, "seed": seed}))
    return pool.outcome == VALIDATION


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.3, 0.999])
def test_the_split_has_its_ratio_for_every_seed(ratio):
    deviation = (50_000 * ratio * (1 - ratio)) ** 0.5
    for seed in (*range(10), 1, 2**31, 2**32 - 1):
        assert abs(side(50_000, ratio, seed).sum() - 50_000 * ratio) < 5 * deviation


def test_the_split_is_uniform_over_rows():
    times = sum(side(200, 0.2, seed).astype(int) for seed in range(500))
    chi_square = np.sum((times - 100) ** 2 / (500 * 0.2 * 0.8))
    assert 120 < chi_square < 300  # 200 expected, standard deviation 20


def test_a_larger_ratio_holds_out_more_rows_and_the_same():
    small, large = side(5000, 0.05, 1), side(5000, 0.1, 1)
    assert np.all(large[small]) and large.sum() > small.sum()


def test_the_draws_of_one_seed_do_not_depend_on_each_other():
    """Side, sample and order of the same rows under the same seed: no half of one is over-represented in another."""
    count, half = 20_000, 10_000
    held_out = side(count, 0.5, 42)
    pool = pool_of(count)
    kept = np.isin(np.arange(count), sampled(pool, half, seed=42))
    pool.outcome[:] = TRAIN
    order = np.argsort(share_train(pool, mixture({"a": 1.0}), count_tokens=False)) < half
    for one, other in itertools.combinations((held_out, kept, order, side(count, 0.5, 43)), 2):
        assert abs(np.sum(one & other) - count / 4) < 5 * (count / 16) ** 0.5


def test_the_order_of_training_is_shuffled():
    pool = pool_of(5000, 5000)
    taken = share_train(pool, mixture({"a": 0.5, "b": 0.5}), count_tokens=False)
    for window in np.split(pool.source[taken], 50):  # 100 expected of 200, standard deviation 7
        assert 65 < window.sum() < 135
    assert abs(np.corrcoef(taken, np.arange(10_000))[0, 1]) < 0.05
    other = share_train(pool_of(5000, 5000), mixture({"a": 0.5, "b": 0.5}, seed=43), count_tokens=False)
    assert sorted(other) == sorted(taken) and np.mean(other == taken) < 0.01


# Duplicates and leaks


def test_of_duplicates_the_first_source_by_name_keeps_its_row():
    pool = pool_of(3, 3, keys=[1, 2, 2, 2, 1, 3])
    drop_duplicates(pool, mixture({"b": 0.5, "a": 0.5}))
    assert pool.outcome.tolist() == [2, 2, 2, TRAIN, TRAIN, TRAIN]
    assert pool.reasons_of(0) == {"duplicate": 3} and pool.reasons_of(1) == {}


def test_of_duplicates_the_held_out_row_is_kept():
    pool = pool_of(2, 2, keys=[1, 2, 1, 3], held_out=[2])
    drop_duplicates(pool, mixture({"a": 0.5, "b": 0.5}))
    assert pool.outcome.tolist() == [2, TRAIN, TRAIN, TRAIN]


def test_dropped_rows_are_nobodys_duplicates():
    pool = pool_of(3, keys=[1, 1, 1])
    pool.drop(np.array([0]), "too short")
    drop_duplicates(pool, mixture({"a": 1.0}))
    assert reasons(pool) == {"too short": 1, "duplicate": 1}


def test_the_order_of_sources_and_rows_decides_nothing():
    """The same keys are taken from the same sources, in the same order, however sources and rows are arranged."""
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 60, size=count) for name, count in {"a": 30, "b": 40, "c": 50}.items()}
    ratios = {"a": 0.25, "b": 0.25, "c": 0.5}  # ties in every remainder
    extra = {"sources": {"a": {"max_samples": 15, "max_repetition": 2}}, "validation": {"ratio": 0.3}}
    found = set()
    for names, dedup in itertools.product(itertools.permutations("abc"), (True, False)):
        share = mixture({name: ratios[name] for name in names}, **extra)
        pool = pool_of(
            *(len(rows[name]) for name in names), keys=np.concatenate([rng.permutation(rows[n]) for n in names])
        )
        if dedup:
            drop_duplicates(pool, share)
        sample_sources(pool, share)
        split(pool, share)
        taken = [share_train(pool, share, count_tokens=False), share_validation(pool, share)]
        named = [tuple((names[pool.source[row]], int(pool.key[row])) for row in side) for side in taken]
        found.add((dedup, *named))
    assert len(found) == 2


def test_rows_that_a_source_also_holds_out_are_not_trained_on():
    pool = pool_of(4, 2, keys=[1, 2, 3, 4, 1, 5], held_out=[3], groups=[7, 8, 9, 7, 7, 6])
    drop_leaks(pool)
    assert np.flatnonzero(pool.live).tolist() == [1, 2, 3, 5]
    assert reasons(pool) == {"also among the validation rows": 2}


def test_a_source_trains_on_all_rows_but_those_it_holds_out():
    pool = pool_of(500, 500, held_out=range(10))
    split(pool, mixture({"a": 0.5, "b": 0.5}, validation={"ratio": 0.5}))
    assert np.flatnonzero(pool.outcome[:500] == VALIDATION).tolist() == list(range(10))
    assert 200 < np.sum(pool.outcome[500:] == VALIDATION) < 300


def test_no_prompt_is_on_both_sides():
    """Source a holds rows out itself, b by hash; a prompt of b's held-out rows must not be among a's training rows."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 2**63, size=40, dtype=np.uint64)[rng.integers(0, 40, size=400)]
    pool = pool_of(200, 200, groups=groups, held_out=range(5))
    share = mixture({"a": 0.5, "b": 0.5}, validation={"ratio": 0.4})
    drop_leaks(pool)
    split(pool, share)
    on = {side: set(groups[pool.outcome == side].tolist()) for side in (TRAIN, VALIDATION)}
    assert on[TRAIN] and on[VALIDATION] and not on[TRAIN] & on[VALIDATION]


def test_an_empty_source_among_others():
    pool = pool_of(20, 0)
    drop_duplicates(pool, mixture({"a": 0.5, "b": 0.5}))
    split(pool, mixture({"a": 0.5, "b": 0.5}))
    with pytest.raises(MixtureError, match=r"datasets\.b: no training row is left"):
        share_train(pool, mixture({"a": 0.5, "b": 0.5}), count_tokens=False)
