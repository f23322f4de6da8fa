"""Endless streams: pass after pass, in slices of their batches, and on from any row."""

import json
from itertools import islice

import pytest
from datasets import IterableDataset

from minimind_trl.trainers.endless_stream import EndlessStream


def numbers(files):
    for file in files:
        for index in range(3):
            yield {"x": 10 * file + index}


def make(count: int = 8) -> IterableDataset:
    return IterableDataset.from_generator(numbers, gen_kwargs={"files": list(range(count))})


def taken(stream: EndlessStream, count: int) -> list[int]:
    return [row["x"] for row in islice(stream, count)]


def test_every_pass_has_every_row_in_another_order():
    found = taken(EndlessStream(make(), batch_size=2), 72)
    passes = [found[:24], found[24:48], found[48:]]
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


@pytest.mark.parametrize("done", [1, 2, 23, 24, 25, 48, 60])
def test_it_goes_on_at_any_row(done):
    whole, stopped, resumed = (EndlessStream(make(), batch_size=2) for _ in range(3))
    expected = taken(whole, 100)
    assert taken(stopped, done) == expected[:done]
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert taken(resumed, 100 - done) == expected[done:]


def test_processes_take_turns_with_a_batch_each():
    whole = taken(EndlessStream(make(), batch_size=2), 24)
    halves = [taken(EndlessStream(make(), 2, process, 2), 12) for process in (0, 1)]
    turns = [row for turn in range(6) for half in halves for row in half[2 * turn : 2 * turn + 2]]
    assert turns == whole


def test_one_without_a_row_ends():
    assert taken(EndlessStream(make().filter(lambda row: False), batch_size=2), 1) == []
