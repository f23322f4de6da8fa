"""Graded rewards for calls and for answers that copy a result."""

import json

import pytest

from minimind_trl.rewards import load_rewards

RIGHT = [
    {"name": "price", "arguments": {"item": 482}},
    {"name": "calculator", "arguments": {"expression": "618 * 37"}},
]


def call(name: str, **arguments) -> dict:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def result(text: str) -> dict:
    return {"role": "tool", "content": text}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


BOTH = [call("price", item=482), result("618"), call("calculator", expression="618 * 37"), result("22866")]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ([*BOTH, answer("22866")], 1),
        ([*BOTH[:2], answer("618")], 0.5),
        ([call("price", item=483), result("1"), *BOTH[2:], answer("22866")], (0.5 + 0.5 * 2 / 3 + 1) / 2),
        ([call("price", number=482), answer("")], 0),  # no such argument
        ([call("price", item=482), *BOTH, answer("22866")], (1 + 0 + 0) / 3),  # one call too many
        ([answer("22866")], 0),
        ("22866", 0),
    ],
)
def test_calls_are_compared_in_their_order(completion, expected):
    [reward], _ = load_rewards(["call_match"])
    for right in (RIGHT, json.dumps(RIGHT)):
        assert reward([""], [completion], expected_calls=[right]) == [pytest.approx(expected)]


def test_where_no_call_is_right_only_none_is_good():
    [reward], _ = load_rewards(["call_match"])
    assert reward(["", ""], [[answer("12")], BOTH], expected_calls=["[]", "[]"]) == [1, 0]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ([*BOTH, answer("22866")], 1),
        ([*BOTH, answer("22856")], 0.8),
        ([*BOTH, answer("<think>\n\n</think>\n\n22866")], 1),
        ([*BOTH, answer("417")], 0),  # not the last result
        (BOTH, 0),  # no answer
        ([answer("22866")], 0),
        ("22866", 0),
    ],
)
def test_an_answer_is_compared_with_the_last_result(completion, expected):
    [reward], _ = load_rewards(["result_match"])
    assert reward([""], [completion]) == [pytest.approx(expected)]
