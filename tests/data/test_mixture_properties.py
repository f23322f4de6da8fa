"""Whatever the mixture: its shares, its accounts and its determinism, over random small mixtures."""

import json
import random
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimind_trl.data import DatasetMixer, MixtureError, selection
from minimind_trl.data.config import load_mixture

EMPTY, LONG = -1, -2  # rows that cannot be used, and that the filter drops


def row_of(content: int, phase: str) -> dict:
    """The row of a content; in phase dpo three contents have the same prompt."""
    answer = {EMPTY: "", LONG: "long " * 50}.get(content, f"answer {content}")
    if phase == "pretrain":
        return {"text": answer}
    if phase == "sft":
        return {"messages": [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]}
    return {"prompt": f"question {content // 3}", "chosen": answer, "rejected": "no answer"}


def content_of(row: dict) -> int:
    answer = row["text"] if "text" in row else (row.get("messages") or row.get("chosen"))[-1]["content"]
    return int(answer.split()[1])


source_options = st.fixed_dictionaries(
    {"filters": st.just([{"type": "length", "max_length": 100}])},
    optional={"max_repetition": st.integers(1, 3), "max_samples": st.integers(10, 50)},
)


def contents(rng: random.Random) -> list[int]:
    """5 to 60 rows, some or many of them the same, also as in other sources, and few or most of no use."""
    known, bad = rng.choice([30, 300, 300]), rng.choice([0.0, 0.0, 0.05, 0.1, 0.3, 0.6])
    return [
        rng.choice([EMPTY, LONG]) if rng.random() < bad else rng.randrange(known)
        for _ in range(rng.choice([rng.randint(5, 60), rng.randint(40, 60)]))
    ]


@st.composite
def mixtures(draw) -> dict:
    """What goes into a mixture file, and under `contents` the rows of each source."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 4))
    weights = draw(st.lists(st.integers(2, 9), min_size=count, max_size=count))
    sources = {
        # rounded, so that the ratios do not quite sum to one
        name: draw(source_options) | {"mix_ratio": round(weight / sum(weights), 4)}
        for name, weight in zip(draw(st.permutations("abcd")), weights, strict=False)
    }
    content = {
        "metadata": {"phase": draw(st.sampled_from(["pretrain", "sft", "dpo"]))},
        "seed": draw(st.integers(0, 5)),
        "validation": {
            "ratio": draw(st.sampled_from([0.1, 0.3, 0.5])),
            "seed": draw(st.integers(0, 5)),
            "stratified": draw(st.booleans()),
        },
        "dedup": draw(st.sampled_from(["exact", "exact", "none"])),
        "sources": sources,
        "contents": {name: contents(rng) for name in sources},
    }
    if draw(st.integers(0, 3)) == 0:
        content["size"] = {"rows": draw(st.integers(10, 50))}
    return content


def write(folder: Path, wanted: dict) -> Path:
    phase = wanted["metadata"]["phase"]
    for name, rows in wanted["contents"].items():
        text = "".join(json.dumps(row_of(content, phase)) + "\n" for content in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    listed = [{"name": name, "source": f"{name}.jsonl", **options} for name, options in wanted["sources"].items()]
    content = {key: value for key, value in wanted.items() if key not in ("sources", "contents")}
    (folder / "mixture.yaml").write_text(yaml.safe_dump(content | {"datasets": listed}), encoding="utf-8")
    return folder / "mixture.yaml"


def reordered(wanted: dict) -> dict:
    """The same mixture, with its sources and its lines in another order."""
    rng = random.Random(0)
    rows = {name: rng.sample(lines, len(lines)) for name, lines in wanted["contents"].items()}
    return wanted | {"sources": dict(reversed(wanted["sources"].items())), "contents": rows}


def build(path: Path):
    mixer = DatasetMixer.from_yaml(path)
    data = mixer.build()
    return {side: [(row["source"], content_of(row)) for row in data[side]] for side in data}, mixer


# What is expected, worked out from the definitions.


def usable(wanted: dict) -> dict[str, Counter]:
    """Of each source, how often each content is left after filters, duplicates and before sampling."""
    found, seen = {}, set()
    for name in sorted(wanted["sources"]):
        rows = Counter(content for content in wanted["contents"][name] if content >= 0)
        if wanted["dedup"] == "exact":
            rows = Counter(set(rows) - seen)
            seen |= set(rows)
        found[name] = rows
    return found


def rounded_shares(size: int, ratios: dict[str, float]) -> dict[str, int]:
    exact = {name: Fraction(str(ratio)) for name, ratio in sorted(ratios.items())}
    shares = {name: size * ratio / sum(exact.values()) for name, ratio in exact.items()}
    by_remainder = sorted(shares, key=lambda name: -(shares[name] % 1))
    extra = size - sum(int(share) for share in shares.values())
    return {name: int(share) + (name in by_remainder[:extra]) for name, share in shares.items()}


def largest_size(available: dict[str, int], ratios: dict[str, float]) -> int:
    """By trying: the last size up to which no source has less than its share."""
    total = sum(Fraction(str(ratio)) for ratio in ratios.values())
    size = 0
    while all((size + 1) * Fraction(str(ratio)) / total <= available[name] for name, ratio in ratios.items()):
        size += 1
    return size


def is_impossible(wanted: dict, sides: dict[str, dict[str, int]]) -> bool:
    """Whether there is no such mixture of what is on the sides; empty `sides` if it failed before the split."""
    for rows in wanted["contents"].values():
        if rows.count(EMPTY) > len(rows) / 2 or not any(content >= 0 for content in rows):
            return True
    if not sides:
        return False
    stratified = wanted["validation"]["stratified"]
    held_out = sides["validation"].values()
    if not any(held_out) or (stratified and not all(held_out)):
        return True
    size = train_size(wanted, sides["train"])
    return size is None or not all(rounded_shares(size, ratios_of(wanted)).values())


def ratios_of(wanted: dict) -> dict[str, float]:
    return {name: source["mix_ratio"] for name, source in wanted["sources"].items()}


def train_size(wanted: dict, available: dict[str, int]) -> int | None:
    """Rows of the training split; None where more are asked for than there can be."""
    rows = {name: available[name] * source.get("max_repetition", 1) for name, source in wanted["sources"].items()}
    largest = largest_size(rows, ratios_of(wanted))
    size = wanted.get("size", {"rows": largest})["rows"]
    return size if size <= largest else None


@settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(wanted=mixtures())
def test_mixtures(wanted):
    sides = {}

    def spy(pool, mixture, count_tokens):
        """How many rows of each source are on each side, before shares are taken of them."""
        names = [source.name for source in mixture.datasets]
        for side, outcome in {"train": selection.TRAIN, "validation": selection.VALIDATION}.items():
            on_side = pool.outcome == outcome
            sides[side] = {name: int(np.sum((pool.source == i) & on_side)) for i, name in enumerate(names)}
        return share_train(pool, mixture, count_tokens)

    share_train = selection.share_train
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "share_train", spy)
        path = write(Path(folder), wanted)
        load_mixture(path)  # whatever fails later, the file is valid
        try:
            data, mixer = build(path)
        except MixtureError as error:
            assert is_impossible(wanted, sides), error
            with pytest.raises(MixtureError):
                build(write(Path(folder), reordered(wanted)))
            return
        assert not is_impossible(wanted, sides)
        check_sides(wanted, sides)
        check_shares(wanted, sides, data)
        check_rows(wanted, data)
        check_report(wanted, data, mixer.report)
        assert build(path)[0] == data
        # Nothing depends on where a row stands: the same rows, in the same order of training.
        again, other = build(write(Path(folder), reordered(wanted)))
        assert again == data
        drops = [{source.name: source.dropped for source in report.sources} for report in (mixer.report, other.report)]
        assert drops[0] == drops[1]


def check_sides(wanted, sides):
    """Every usable row, or a sample of as many as asked for, is on one side."""
    for name, rows in usable(wanted).items():
        kept = min(sum(rows.values()), wanted["sources"][name].get("max_samples", 10**6))
        assert sides["train"][name] + sides["validation"][name] == kept


def check_shares(wanted, sides, data):
    """The training split is as large as it can be or as asked for, and its shares are exact; validation likewise."""
    ratios = ratios_of(wanted)
    size = train_size(wanted, sides["train"])
    assert Counter(source for source, _ in data["train"]) == rounded_shares(size, ratios)
    held_out = sides["validation"]
    if wanted["validation"]["stratified"]:
        held_out = rounded_shares(largest_size(held_out, ratios), ratios)
        held_out = {name: max(rows, 1) for name, rows in held_out.items()}
    assert Counter(source for source, _ in data["validation"]) == Counter(held_out)


def check_rows(wanted, data):
    """Rows are the source's own, repeated as allowed and evenly, never held out twice, and on one side only."""
    available, train, held_out = usable(wanted), Counter(data["train"]), Counter(data["validation"])
    for (name, content), times in train.items():
        assert times <= wanted["sources"][name].get("max_repetition", 1) * available[name][content]
    for (name, content), times in held_out.items():
        assert times <= available[name][content]
    same = 3 if wanted["metadata"]["phase"] == "dpo" else 1  # contents with the same prompt stay together
    assert not {content // same for _, content in train} & {content // same for _, content in held_out}
    if wanted["dedup"] == "exact":
        for name in wanted["sources"]:
            times = [count for (source, _), count in train.items() if source == name]
            assert max(times) - min(times) <= 1


def check_report(wanted, data, report):
    """Rows in are rows out, without repetitions, and the drops."""
    for source in report.sources:
        rows = wanted["contents"][source.name]
        assert source.rows_in == len(rows)
        kept = source.train.rows - source.train.repeated + source.validation.rows
        assert len(rows) == kept + sum(source.dropped.values())
        assert source.train.rows == sum(name == source.name for name, _ in data["train"])
        assert source.validation.rows == sum(name == source.name for name, _ in data["validation"])
        assert source.dropped.get("length: over 100 characters", 0) == rows.count(LONG)
        left = sum(usable(wanted)[source.name].values())
        assert source.dropped.get("duplicate", 0) == sum(content >= 0 for content in rows) - left
        if wanted["dedup"] == "exact":
            distinct = {content for name, content in data["train"] if name == source.name}
            assert len(distinct) == source.train.rows - source.train.repeated
