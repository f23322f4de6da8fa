"""Every filter keeps and drops what it should, under a constant reason, and refuses a bad spec with one line."""

import json
import sys

import pytest
from pydantic import BaseModel, ValidationError

from minimind_trl.data.filters import (
    BUILTIN_FILTERS,
    Candidate,
    FilterSpec,
    LengthFilter,
    code_quality_score,
    code_ratio,
    quality_score,
)
from minimind_trl.errors import MixtureError
from tests.conftest import REPOSITORY

REAL = REPOSITORY.parent / "shared" / "data" / "real"

ENGLISH = "Once upon a time there was a little girl who loved her garden. Every day she watered the flowers and sang."
CHINESE = "今天天气很好，我们一起去公园散步吧！你觉得怎么样？我想带上小狗，它最喜欢在草地上跑来跑去。"
MIXED = "请用 Python 写一个函数，计算两个数的和，并解释 the difference between arguments and parameters。"
FRENCH = "Le chat dort sur la table pendant que les enfants jouent dans le jardin avec leurs amis."
PYTHON = (
    "import math\n\n\ndef area(radius):\n    '''Area of a circle.'''\n    return math.pi * radius**2\n"
    "\n\nprint(area(2))\n"
)
CHAT_WITH_CODE = f"写一个求面积的函数。\n好的，代码如下：\n```python\n{PYTHON}```\n它返回圆的面积。"
MATHS = "Solve: 2x + 3y = 12, 4x - 5y = 2.\n$$x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}$$ so x = 3 and y = 2."
TABLE = "| name | age |\n| --- | --- |\n| Ann | 12 |\n| Bob | 14 |"
SONG = "Chorus:\nWe sing all night and dance all day\n" * 2 + "And when the morning comes around we are on our way."
CORRECTED = "Correct the text: she dont like to go to the school in the morning because it is cold outside there.\n" * 2

GARBAGE = {
    "repeated lines": "Buy now and save big money today\n" * 30,
    "repeated words": "ha " * 60,
    "repeated phrase": "the cat sat on the mat and then the dog came to " * 20,
    "repeated Chinese": "点击这里领取优惠券，" * 30,
    "symbols": "$$%%^&*(#@!~|<>" * 10,
    "UTF-8 as Latin-1": CHINESE.encode().decode("latin-1"),
    "UTF-8 as Windows-1252": "Itâ€™s a cafÃ© that doesnâ€™t open before noon. Itâ€™s a pity, isnâ€™t it?",
    "lost characters": "The \ufffd\ufffd of the\ufffd house \ufffd\ufffd was\ufffd red.",
    "dump in fours": "\n".join(
        f"{i * 16:08x}: " + " ".join(f"{(i * 7919 + j * 104729) % 65536:04x}" for j in range(8)) for i in range(20)
    ),
    "dump in twos": " ".join(f"{i * 73 % 251:02x}" for i in range(200)),
    "base64": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo0NTY3ODkwYWJj" * 6,
    "broken off": "\n".join(f"Read more about part {i} of this long story..." for i in range(12)),
    "blank": " \n\t ",
}


class Specs(BaseModel):
    filters: list[FilterSpec] = []


def reason(text="", raw=None, row=None, tokens=None, **spec):
    (chosen,) = Specs(filters=[spec]).filters
    return chosen.reason(Candidate(row=row or {"text": text}, raw=raw or {}, text=text, tokens=tokens))


def problems(*specs):
    with pytest.raises(ValidationError) as caught:
        Specs(filters=list(specs))
    return [(problem["loc"][1:], problem["type"], problem["msg"]) for problem in caught.value.errors()]


def real_rows(name):
    file = REAL / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip(f"the real texts are not here: {file}")
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def share_kept(texts, **spec):
    (chosen,) = Specs(filters=[spec]).filters
    return sum(chosen.reason(Candidate({}, {}, text)) is None for text in texts) / len(texts)


def test_length_counts_characters_or_tokens_and_includes_its_bounds():
    spec = {"type": "length", "min_length": 3, "max_length": 5}
    assert reason("abc", **spec) is None and reason("你好世界吗", **spec) is None
    assert reason("ab", **spec) == "length: under 3 characters"
    assert reason("abcdef", **spec) == "length: over 5 characters"
    assert reason("a long text of few tokens", tokens=4, unit="tokens", **spec) is None
    assert reason("abcd", tokens=6, unit="tokens", **spec) == "length: over 5 tokens"


def test_length_in_tokens_asks_for_a_tokenizer():
    assert not LengthFilter(min_length=1).needs_tokenizer
    assert LengthFilter(min_length=1, unit="tokens").needs_tokenizer
    with pytest.raises(MixtureError, match="needs a tokenizer"):
        reason("text", type="length", min_length=1, unit="tokens")


GOOD = [ENGLISH, CHINESE, MIXED, FRENCH, PYTHON, CHAT_WITH_CODE, MATHS, TABLE, SONG, CORRECTED]


@pytest.mark.parametrize(
    "text", [*GOOD, "Yes.", "好的。", "42", "Great! 🎉🎉", "copy: 17 42 99 10 23 55 61 70 -> 17 42"]
)
def test_quality_keeps_good_texts_of_every_kind(text):
    assert reason(text, type="quality") is None


@pytest.mark.parametrize("kind", GARBAGE)
def test_quality_drops_garbage_even_where_little_is_asked(kind):
    assert reason(GARBAGE[kind], type="quality", min_score=0.2) == "quality: score under 0.2"


def test_quality_falls_with_the_share_of_garbage():
    scores = [quality_score(f"{ENGLISH}\n" + "Buy now and save big money\n" * count) for count in (1, 3, 4, 10)]
    assert scores[0] == 1 and scores == sorted(scores, reverse=True) and scores[-1] == 0


@pytest.mark.parametrize("text", [PYTHON, CHAT_WITH_CODE, "x = 1", "SELECT name FROM users WHERE id = 1;"])
def test_code_quality_keeps_code(text):
    assert reason(text, type="code_quality") is None


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        CHINESE,
        MATHS,
        *GARBAGE.values(),
        "# This file was auto-generated by the build.\n" + PYTHON,
        "x = [" + "1, " * 1000 + "]\n",
        "data = '" + "QUJDREVG" * 200 + "'\n",
        "key = b'" + "\\x4f" * 200 + "'\n",
    ],
    ids=lambda text: text[:20],
)
def test_code_quality_drops_prose_generated_files_and_data(text):
    assert reason(text, type="code_quality") == "code_quality: score under 0.5"


def test_code_quality_of_a_language_asks_that_the_fenced_blocks_of_it_parse():
    spec = {"type": "code_quality", "language": "python"}
    assert reason(PYTHON, **spec) is None and reason(CHAT_WITH_CODE, **spec) is None
    assert reason("1. Like this:\n   ```py\n   x = f(1)\n   y = x\n   ```", **spec) is None
    dropped = "code_quality: not python"
    assert reason("def f(x):\n    print 'two'\n", **spec) == dropped
    assert reason(CHAT_WITH_CODE.replace("return", "return return"), **spec) == dropped
    assert reason("```js\nconst f = (x) => { return x; };\n```", **spec) == dropped
    assert reason("x = " + "(" * 500 + ")" * 500, min_score=0.0, **spec) == dropped


@pytest.mark.parametrize("text", [PYTHON, CHAT_WITH_CODE, f"```python\n{PYTHON}```", f"{ENGLISH}\n{PYTHON}"])
def test_a_least_share_of_code(text):
    assert reason(text, type="code_quality", min_code_ratio=0.1) is None
    assert reason(ENGLISH, type="code_quality", min_code_ratio=0.1) == "code_quality: under 10% of it is code"
    both = {"type": "code_quality", "min_code_ratio": 0.1, "min_score": 1.0}
    assert reason(text, **both) == "code_quality: score under 1.0"


def test_the_share_of_code_is_measured_in_characters():
    assert code_ratio("") == 0 and code_ratio(PYTHON) == 1
    assert code_ratio(f"```\n{ENGLISH}\n```\n{ENGLISH}") == pytest.approx(0.5)


def test_languages_is_another_name_of_keep():
    assert reason(FRENCH, type="language", languages=["en"]) == "language: fr"
    assert reason(ENGLISH, type="language", languages=["en"]) is None
    ((place, kind, _),) = problems({"type": "language", "languages": ["en"], "keep": ["en"]})
    assert (place, kind) == ((0, "language", "languages"), "extra_forbidden")


def test_language_keeps_the_listed_ones():
    pytest.importorskip("py3langid")
    spec = {"type": "language", "keep": ["en", "zh"]}
    for text in (ENGLISH, CHINESE, MIXED, "你好", "學習機器", "Hello", "42", "😀", ENGLISH.upper(), ENGLISH * 1000):
        assert reason(text, **spec) is None, text
    assert reason(FRENCH, **spec) == "language: fr"
    assert reason(ENGLISH, type="language", keep=["zh"]) == "language: en"
    assert reason(CHINESE, type="language", keep=["en"]) == "language: zh"


def test_language_can_ask_to_be_sure():
    pytest.importorskip("py3langid")
    spec = {"type": "language", "keep": ["en"], "min_confidence": 0.5}
    assert reason(ENGLISH, **spec) is None
    assert reason("42", **spec) == "language: under 0.5 sure"


def test_language_without_its_package_says_what_to_install(monkeypatch):
    from minimind_trl.data.filters import _identifier

    _identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    ((place, _, message),) = problems({"type": "language", "keep": ["en"]})
    assert place == (0, "language", "keep")
    assert "pip install minimind-trl[data]" in message


def test_regex_drops_or_keeps_what_it_finds_in_the_text_or_in_a_field():
    spec = {"type": "regex", "pattern": r"as an AI|作为.{0,6}人工智能"}
    assert reason(CHINESE, **spec) is None
    assert reason("作为一个人工智能，我不能", **spec) == f"regex: {spec['pattern']!r} found"
    assert reason("anything", action="keep", **spec) == f"regex: {spec['pattern']!r} not found"
    url = {"type": "regex", "pattern": r"\.edu/", "field": "meta.url", "action": "keep"}
    assert reason(raw={"meta": {"url": "http://a.edu/x"}}, **url) is None
    assert reason(raw={"meta": {"url": "http://a.com/x"}}, **url) == "regex: '\\\\.edu/' not found"
    assert reason(raw={"meta": 3}, **url) == "regex: no text in 'meta.url'"


@pytest.mark.parametrize(
    ("spec", "value", "expected"),
    [
        ({"keep": ["good", 1]}, "good", None),
        ({"keep": ["good", 1]}, 1.0, None),
        ({"keep": ["good", 1]}, True, "field: 'score' not listed"),
        ({"keep": [True]}, True, None),
        ({"drop": ["bad"]}, "good", None),
        ({"drop": ["bad"]}, "bad", "field: 'score' listed"),
        ({"drop": ["bad"]}, None, "field: no 'score'"),
        ({"min": 3}, 3, None),
        ({"min": 3}, 2.9, "field: 'score' under 3"),
        ({"min": 1, "max": 2.5}, 3, "field: 'score' over 2.5"),
        ({"max": 0}, 0, None),
        ({"min": 0}, "3", "field: 'score' is not a number"),
        ({"min": 0}, True, "field: 'score' is not a number"),
        ({"min": 0}, float("nan"), "field: 'score' is not a number"),
    ],
)
def test_field_by_list_or_range(spec, value, expected):
    assert reason(raw={"score": value}, type="field", field="score", **spec) == expected


def test_field_inside_objects_or_with_a_dot_in_its_name_or_absent():
    spec = {"type": "field", "field": "meta.score", "min": 1}
    assert reason(raw={"meta": {"score": 2}}, **spec) is None
    assert reason(raw={"meta.score": 2}, **spec) is None
    for raw in ({"meta": {}}, {"meta": [1]}, {"other": 1}):
        assert reason(raw=raw, **spec) == "field: no 'meta.score'"


@pytest.fixture
def my_filters(tmp_path, monkeypatch):
    (tmp_path / "my_filters_for_test.py").write_text(
        "def short(row, limit, unit='characters'):\n    return len(row['text']) <= limit or None\n"
        "def why(row):\n    return 'too dull' if 'dull' in row['text'] else True\n"
        "def always(row, keep):\n    return keep\n"
    )
    (tmp_path / "broken_for_test.py").write_text("import no_such_module_for_test\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_filters_for_test"


def test_custom_function_keeps_or_drops_with_or_without_a_reason(my_filters):
    assert reason("text", type=f"{my_filters}:short", limit=10) is None
    assert reason("fine", type=f"{my_filters}:why") is None
    assert reason("dull", type=f"{my_filters}:why") == f"{my_filters}:why: too dull"
    assert reason("any", type=f"{my_filters}:always", keep=False) == f"{my_filters}:always: dropped"


def test_custom_function_that_fails_or_answers_otherwise_is_named(my_filters):
    with pytest.raises(
        MixtureError, match=f"filter {my_filters}:short returned None, not .*; for the row 'a longer text'"
    ):
        reason("a longer text", type=f"{my_filters}:short", limit=10)
    with pytest.raises(MixtureError, match=f"filter {my_filters}:why failed: KeyError: 'text'") as caught:
        reason(row={"messages": []}, type=f"{my_filters}:why")
    assert isinstance(caught.value.__cause__, KeyError)


def test_bad_custom_functions_are_refused_before_any_row(my_filters):
    found = problems(
        {"type": "no_such_module_for_test:f"},
        {"type": "broken_for_test:f"},
        {"type": f"{my_filters}:shrt"},
        {"type": f"{my_filters}:short"},
        {"type": f"{my_filters}:short", "limit": 3, "units": "tokens"},
    )
    assert [place for place, _, _ in found] == [(i, "custom", "type") for i in range(3)] + [
        (i, "custom") for i in (3, 4)
    ]
    texts = [message.removeprefix("Value error, ") for _, _, message in found]
    missing = "ModuleNotFoundError: No module named 'no_such_module_for_test'"
    assert texts[0] == f"cannot import 'no_such_module_for_test': {missing}"
    assert texts[1] == f"cannot import 'broken_for_test': {missing}"
    assert texts[2] == f"{my_filters} has no function 'shrt'; did you mean 'short'?"
    assert "missing a required argument: 'limit'" in texts[3]
    assert "unexpected keyword argument 'units' (parameters after the row: limit, unit)" in texts[4]


KNOWN = f" (known: {', '.join(BUILTIN_FILTERS)}, module:function)"


@pytest.mark.parametrize(
    ("spec", "place", "kind", "text"),
    [
        ({"type": "lenght"}, ("type",), "unknown_filter", f"unknown filter 'lenght'; did you mean 'length'?{KNOWN}"),
        ({"type": "{x}"}, ("type",), "unknown_filter", f"unknown filter '{{x}}'{KNOWN}"),
        ({"type": 3}, ("type",), "unknown_filter", f"unknown filter 3{KNOWN}"),
        ({"min_length": 3}, ("type",), "unknown_filter", f"a filter needs a type{KNOWN}"),
        ("length", (), "value_error", "a filter is a mapping such as {type: length, min_length: 20}"),
        ({"type": "length"}, ("length",), "value_error", "set min_length, max_length or both"),
        (
            {"type": "length", "min_length": 3, "max_length": 2},
            ("length",),
            "value_error",
            "min_length 3 is over max_length 2",
        ),
        ({"type": "length", "min_length": "3"}, ("length", "min_length"), "int_type", "valid integer"),
        ({"type": "quality", "mn_score": 0.3}, ("quality", "mn_score"), "extra_forbidden", "not permitted"),
        ({"type": "quality", "min_score": 2}, ("quality", "min_score"), "less_than_equal", "less than or equal to 1"),
        ({"type": "code_quality", "language": "perl"}, ("code_quality", "language"), "literal_error", "'python'"),
        ({"type": "regex"}, ("regex", "pattern"), "missing", "required"),
        ({"type": "regex", "pattern": "a(b"}, ("regex", "pattern"), "value_error", "subpattern at position 1"),
        ({"type": "field", "field": "x"}, ("field",), "value_error", "exactly one of keep, drop and a range"),
        ({"type": "field", "field": "x", "keep": [1], "max": 2}, ("field",), "value_error", "exactly one"),
        ({"type": "field", "field": "x", "min": 3, "max": 2}, ("field",), "value_error", "min 3 is over max 2"),
        ({"type": "field", "field": "x", "keep": []}, ("field", "keep"), "too_short", "at least 1 item"),
    ],
)  # fmt: skip
def test_bad_specs_are_reported_at_their_place(spec, place, kind, text):
    ((found_place, found_kind, message),) = problems({"type": "quality"}, spec)
    assert (found_place, found_kind) == ((1, *place), kind)
    assert text in message


def test_unknown_languages_are_reported_with_the_nearest():
    pytest.importorskip("py3langid")
    for code, meant in {"english": "en", "zh-CN": "zh", "cn": "zh", "Chinese": "zh"}.items():
        ((place, _, message),) = problems({"type": "language", "keep": ["en", code]})
        assert place == (0, "language", "keep")
        assert message.endswith(f"unknown language {code!r}; did you mean {meant!r}?")


def test_every_problem_of_a_list_is_reported_and_filters_come_back_from_json():
    assert len(problems({"type": "lenght"}, {"type": "quality", "a": 1, "min_score": -1}, {"type": "length"})) == 4
    specs = Specs(filters=[{"type": "length", "min_length": 2}, {"type": "field", "field": "x", "keep": ["a"]}])
    assert Specs.model_validate_json(specs.model_dump_json()) == specs
    assert Specs(filters=specs.filters) == specs


def test_quality_keeps_real_texts():
    stories = [row["text"] for row in real_rows("tinystories")]
    answers = [row["output"] for row in real_rows("alpaca") if len(row["output"]) > 20]
    assert share_kept(stories, type="quality") >= 0.97
    assert share_kept(answers, type="quality") >= 0.97


def test_code_quality_keeps_real_code_and_not_real_prose():
    code = [row["text"] for row in real_rows("python_code")]
    stories = [row["text"] for row in real_rows("tinystories")]
    assert share_kept(code, type="code_quality") >= 0.9
    assert share_kept(stories, type="code_quality") <= 0.01
    worst_code = sorted(map(code_quality_score, code))[len(code) // 10]
    assert worst_code > max(map(code_quality_score, [*stories[:100], *GARBAGE.values()]))


def test_language_keeps_real_english():
    pytest.importorskip("py3langid")
    stories = [row["text"] for row in real_rows("tinystories")]
    answers = ["\n".join(row.values()) for row in real_rows("alpaca")]
    assert share_kept(stories[:200], type="language", keep=["en"]) >= 0.99
    assert share_kept(answers, type="language", keep=["en"]) >= 0.99
