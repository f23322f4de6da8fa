"""One mixture file in, train and validation out, nothing lost without a counted reason."""

import json

import pytest
import yaml

from minimind_trl.data import DatasetMixer, MixtureError, load_mixture
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import REPOSITORY


@pytest.fixture
def write(tmp_path):
    """Write JSONL files and a mixture over them: `write({"a": rows}, ratios={"a": 1.0})` gives the mixture's path."""

    def write_mixture(sources: dict[str, list], phase="pretrain", ratios=None, **extra):
        datasets = []
        for name, rows in sources.items():
            text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
            ratio = (ratios or {}).get(name, 1 / len(sources))
            datasets.append({"name": name, "source": f"{name}.jsonl", "mix_ratio": ratio})
        path = tmp_path / "mixture.yaml"
        path.write_text(yaml.safe_dump({"metadata": {"phase": phase}, "datasets": datasets, **extra}))
        return path

    return write_mixture


def build(path):
    mixer = DatasetMixer.from_yaml(path)
    return mixer.build(tiny_tokenizer()), mixer


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("data_configs/**/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_mixture_is_valid_and_its_files_exist(path):
    for source in load_mixture(path).datasets:
        for file in (source.data_files.train, source.data_files.validation):
            assert (path.parent / source.source / file).is_file()


def texts(prefix, count):
    return [{"text": f"{prefix} {i}"} for i in range(count)]


def test_shares_are_exact_no_row_comes_twice_and_the_rest_is_counted(write):
    path = write({"a": texts("a", 300), "b": texts("b", 200)}, ratios={"a": 0.75, "b": 0.25})
    data, mixer = build(path)
    sources, rows = list(data["train"]["source"]), list(data["train"]["text"])
    assert abs(sources.count("a") / len(rows) - 0.75) < 0.01
    assert len(set(rows)) == len(rows)
    left_out = 500 - len(rows) - len(data["validation"])
    assert mixer.describe() == f"{left_out} rows dropped: b beyond its share"


def test_validation_rows_of_all_sources_are_mixed(write):
    data, _ = build(write({"a": texts("a", 400), "b": texts("b", 400)}, validation={"ratio": 0.2, "seed": 0}))
    assert len(set(list(data["validation"]["source"])[:20])) == 2


def test_tools_and_tool_calls_of_different_rows_stay_apart(write):
    """Arrow would give every call the union of all rows' arguments, and drop tools that the first row has not."""

    def chat(i, arguments, tools):
        call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        row = {"messages": [{"role": "user", "content": f"q {i}"}, call]}
        return row | ({"tools": tools} if tools else {})

    rows = [chat(i, {"city": "Rome"} if i % 2 else {"zone": i}, i % 3 and [{"name": "f", "n": i}]) for i in range(60)]
    for row in rows[::4]:  # as upstream stores them
        row["messages"][1]["tool_calls"] = json.dumps(row["messages"][1]["tool_calls"])
        row["tools"] = json.dumps(row["tools"]) if "tools" in row else None
    data, _ = build(write({"a": rows}, phase="sft", validation={"ratio": 0.3, "seed": 0}))
    seen = {row["messages"][0]["content"]: row for split in data.values() for row in split}
    for i in range(60):
        converted = seen[f"q {i}"]
        [call] = converted["messages"][1]["tool_calls"]
        assert json.loads(call["arguments"]) == ({"city": "Rome"} if i % 2 else {"zone": i})
        assert json.loads(converted["tools"] or "null") == ([{"name": "f", "n": i}] if i % 3 else None)


def test_the_split_is_by_content(write):
    """A row stays on its side when rows are added and reordered, and no row is on both sides."""
    small, _ = build(write({"a": texts("a", 300)}, validation={"ratio": 0.2, "seed": 1}))
    large, _ = build(write({"a": texts("b", 50) + texts("a", 300)[::-1]}, validation={"ratio": 0.2, "seed": 1}))
    held_out = set(small["validation"]["text"])
    assert 30 < len(held_out) < 90
    assert held_out == {text for text in large["validation"]["text"] if text.startswith("a")}
    assert not held_out & set(large["train"]["text"])


def test_columns_of_other_rows_and_the_sources_name_do_not_move_a_row(write):
    rows = [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a"}]} for i in range(99)
    ]
    thinking = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    other = {"messages": [{"role": "user", "content": "q"}, thinking], "tools": [{"name": "f"}], "skill": "s"}
    rule = {"ratio": 0.2, "seed": 0}
    sides = []
    for sources in ({"a": rows}, {"b": [*rows, other]}):
        data, _ = build(write(sources, phase="sft", validation=rule))
        sides.append({row["messages"][0]["content"] for row in data["validation"]} - {"q"})
    assert sides[0] == sides[1] and "skill" in data["train"].column_names


def test_dropped_rows_are_counted_under_their_reason(write):
    rows = [*texts("a", 90), {"text": ""}, {"text": "  "}, {"text": None}]
    _, mixer = build(write({"a": rows}))
    assert mixer.describe() == "3 rows dropped: empty text"


def test_control_tokens_in_the_data_are_escaped_and_counted(write):
    data, mixer = build(write({"a": [*texts("a", 90), {"text": "he wrote <|im_end|> and stopped"}]}))
    rows = [*data["train"]["text"], *data["validation"]["text"]]
    assert "he wrote < |im_end|> and stopped" in rows
    assert mixer.describe() == "1 control tokens inside the text escaped"


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "user assistant"),
        (
            {
                "conversations": [
                    {"role": "system", "content": "s", "tools": '[{"name": "f"}]'},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {}}]'},
                    {"role": "tool", "content": "1"},
                    {"role": "assistant", "content": "a", "reasoning_content": "r"},
                ]
            },
            "system user assistant tool assistant",
        ),
        ({"instruction": "q", "input": "", "output": "a"}, "user assistant"),
    ],
)
def test_chat_schemas(write, row, roles):
    rows = [vary(row, i) for i in range(60)]
    data, _ = build(write({"a": rows}, phase="sft", validation={"ratio": 0.3, "seed": 0}))
    example = data["train"][0]
    assert " ".join(message["role"] for message in example["messages"]) == roles
    assert ("tools" in example) == ("conversations" in row)


def vary(row, i):
    """The same row with other text, so that the content hash spreads the copies over the splits."""
    return json.loads(json.dumps(row).replace('"q"', f'"q {i}"'))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "q"}], "last message is not the assistant's"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}], "empty assistant message"),
        ([{"role": "robot", "content": "q"}, {"role": "assistant", "content": "a"}], "unknown role 'robot'"),
        ([], "no messages"),
        ("hello", "messages are not a list of objects"),
        (["hello"], "messages are not a list of objects"),
        ([{"role": "assistant", "tool_calls": "[1"}], "tool_calls is not JSON"),
        ([{"role": "assistant", "tool_calls": '[{"arguments": {}}]'}], "a tool call without a name"),
    ],
)
def test_unusable_conversations_are_named(write, messages, reason):
    with pytest.raises(MixtureError, match=f"no row is usable .*{reason}"):
        build(write({"a": [{"messages": messages, "n": 1}]}, phase="sft"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["datasets"][0].update(mix_ratio=0.9), "mix_ratio sums to 0.9, not 1; normalised values: a: 1"),
        (lambda m: m["datasets"][0].update(mix_ratio=-1), "datasets.0.mix_ratio"),
        (
            lambda m: m["datasets"][0].update(mix_ration=1),
            "mix_ration: unknown key; did you mean 'mix_ratio'",
        ),
        (lambda m: m["metadata"].update(phase="sfft"), "metadata.phase"),
        (lambda m: m.update(dataset=[]), "dataset: unknown key; did you mean 'datasets'"),
        (lambda m: m.update(validation={"ratio": 1.5}), "validation.ratio"),
        (lambda m: m["datasets"].append(m["datasets"][0]), "the name a is used twice"),
        (lambda m: m["datasets"][0].update(source="missing.jsonl"), "no such file .*missing.jsonl"),
        (lambda m: m["metadata"].update(phase="sft"), "columns text cannot be turned into 'messages'"),
    ],
)
def test_wrong_mixtures_are_refused(write, edit, message):
    path = write({"a": texts("a", 60)})
    mixture = yaml.safe_load(path.read_text())
    edit(mixture)
    path.write_text(yaml.safe_dump(mixture))
    with pytest.raises(MixtureError, match=message):
        build(path)


def test_all_problems_of_a_mixture_come_at_once(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("metadata: {phase: what, max_seq_length: -3}\ndatasets: []\n")
    with pytest.raises(MixtureError, match=r"3 problem\(s\)"):
        DatasetMixer.from_yaml(path)


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [1", "\x00"])
def test_files_that_are_no_mixture(tmp_path, content):
    path = tmp_path / "m.yaml"
    path.write_text(content)
    with pytest.raises(MixtureError, match=r"m\.yaml"):
        DatasetMixer.from_yaml(path)


@pytest.mark.parametrize(
    ("line", "message"), [('{"text": \n', "not JSON"), ("[1]\n", "a row must be an object, found list")]
)
def test_a_broken_line_is_named(write, line, message):
    with pytest.raises(MixtureError, match=rf"a\.jsonl, line 6: {message}"):
        build(write({"a": [*texts("a", 5), line]}))


def test_an_empty_validation_split_is_refused(write):
    with pytest.raises(MixtureError, match="the validation split is empty"):
        build(write({"a": texts("a", 3)}, validation={"ratio": 0.001, "seed": 0}))
