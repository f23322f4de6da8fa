"""One mixture file in, train and validation out, nothing lost without a counted reason."""

import importlib
import json
import pickle
import sys

import pytest
import yaml
from datasets import Dataset

from minimind_trl.data import DatasetMixer, MixtureError, load_mixture
from minimind_trl.data.filters import Candidate
from minimind_trl.imports import import_function
from minimind_trl.tokenization import tiny_tokenizer


def build(path, tokenizer=None):
    mixer = DatasetMixer.from_yaml(path)
    return mixer.build(tokenizer), mixer


def texts(prefix, count):
    return [{"text": f"{prefix} {i}"} for i in range(count)]


def chat(question, answer="a", **extra):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **extra}


def test_shares_are_exact_no_row_comes_twice_and_the_rest_is_counted(write):
    data, mixer = build(write({"a": texts("a", 300), "b": texts("b", 200)}, ratios={"a": 0.75, "b": 0.25}))
    sources, rows = list(data["train"]["source"]), list(data["train"]["text"])
    assert abs(sources.count("a") - 0.75 * len(rows)) < 1
    assert len(set(rows)) == len(rows)
    for source, rows_in in zip(mixer.report.sources, (300, 200), strict=True):
        assert source.rows_in == rows_in
        assert source.train.rows + source.validation.rows + sum(source.dropped.values()) == rows_in


@pytest.mark.parametrize("phase", ["pretrain", "midtrain", "sft", "dpo", "rlaif"])
@pytest.mark.parametrize("suffix", ["_phase1", "_phase2", "_phase12"])
def test_a_numbered_phase_is_that_phase(write, phase, suffix):
    path = write({"a": texts("a", 9)}, phase=phase + suffix)
    assert DatasetMixer.from_yaml(path).name == f"{phase}_mixture"


def test_a_mixture_file_of_the_fork_loads_unchanged(tmp_path):
    path = tmp_path / "default.yaml"
    path.write_text(
        """
metadata:
  phase: "midtrain_phase1"
  description: "code, reasoning, and general text replay"
  total_tokens: 50_000_000  # 50M tokens for testing
  max_seq_length: 512
  version: "1.0"
datasets:
  - name: "stories"
    source: "roneneldan/TinyStories"
    mix_ratio: 0.4
    format: "huggingface"
    text_field: "text"
    splits: ["train"]
    max_samples: 30000
    filters:
      - type: "language"
        languages: ["en"]
  - name: "code"
    source: "iamtarun/python_code_instructions_18k_alpaca"
    mix_ratio: 0.6
    format: "huggingface"
    text_field: "output"
    splits: ["train"]
    filters:
      - type: "length"
        min_length: 50
        max_length: 2000
      - type: "quality"
        min_score: 0.2
      - type: "code_quality"
        min_code_ratio: 0.1
validation:
  ratio: 0.05
  seed: 42
  stratified: true
"""
    )
    mixture = load_mixture(path)
    [language], [*_, code] = (source.filters for source in mixture.datasets)
    assert mixture.metadata.phase == "midtrain"
    assert language.keep == ["en"] and code.min_code_ratio == 0.1


def test_a_sample_is_of_the_whole_source_not_its_head(write):
    data, _ = build(write({"a": texts("a", 1000)}, options={"max_samples": 200}))
    numbers = [int(text.split()[1]) for text in data["train"]["text"]]
    assert 170 < len(numbers) <= 200
    assert 400 < sum(numbers) / len(numbers) < 600


def test_repetition_fills_a_share_only_as_far_as_allowed(write):
    sources, ratios = {"a": texts("a", 100), "b": texts("b", 100)}, {"a": 0.8, "b": 0.2}
    once, _ = build(write(sources, ratios=ratios))
    assert len(once["train"]) <= 120
    thrice, mixer = build(write(sources, ratios=ratios, options={"max_repetition": 3}))
    rows = list(thrice["train"]["text"])
    assert len(rows) == pytest.approx(3 * len(once["train"]), abs=5)
    assert max(rows.count(row) for row in rows) == 3
    assert mixer.report.sources[0].train.repeated == pytest.approx(200 / 300 * 0.8 * len(rows), abs=3)
    held_out = list(thrice["validation"]["text"])
    assert len(set(held_out)) == len(held_out)


def test_a_size_out_of_reach_names_the_binding_source_and_the_largest(write):
    path = write({"a": texts("a", 400), "b": texts("b", 100)}, ratios={"a": 0.5, "b": 0.5}, size={"rows": 300})
    with pytest.raises(
        MixtureError, match=r"size.rows 300 is out of reach: datasets.b .* the largest size is 1\d\d rows"
    ):
        build(path)


@pytest.mark.parametrize("how", [{"metadata": {"total_tokens": 500}}, {"size": {"tokens": 500}}])
def test_a_budget_in_tokens_is_kept_to_within_one_row(write, how):
    _, mixer = build(write({"a": texts("a", 300), "b": texts("b", 300)}, **how), tiny_tokenizer())
    longest = max(source.train.length_percentiles["95%"] for source in mixer.report.sources) + 2
    assert 500 - 2 * longest <= mixer.report.train.tokens <= 500


def test_a_size_over_the_budget_is_refused(write):
    with pytest.raises(MixtureError, match=r"size.tokens: 900 is over metadata.total_tokens 500"):
        load_mixture(write({"a": texts("a", 9)}, metadata={"total_tokens": 500}, size={"tokens": 900}))


def test_total_tokens_without_a_tokenizer_is_said_not_to_be_applied(write):
    _, mixer = build(write({"a": texts("a", 100)}, metadata={"total_tokens": 500}))
    assert "total_tokens 500 is not applied: no tokenizer was given to count them" in mixer.describe()


def test_validation_rows_of_all_sources_are_mixed(write):
    data, _ = build(write({"a": texts("a", 400), "b": texts("b", 400)}, validation={"ratio": 0.2, "seed": 0}))
    assert len(set(list(data["validation"]["source"])[:20])) == 2


@pytest.mark.parametrize("stratified", [True, False])
def test_stratified_validation_keeps_the_shares(write, stratified):
    sources = {"a": texts("a", 1000), "b": texts("b", 400)}
    rule = {"ratio": 0.2, "seed": 0, "stratified": stratified}
    data, _ = build(write(sources, ratios={"a": 0.5, "b": 0.5}, validation=rule))
    share = list(data["validation"]["source"]).count("b") / len(data["validation"])
    assert share == pytest.approx(0.5 if stratified else 400 / 1400, abs=0.01 if stratified else 0.06)


def test_tools_and_tool_calls_of_different_rows_stay_apart(write):
    """Arrow would give every call the union of all rows' arguments, and drop tools that the first row has not."""

    def called(i, arguments, tools):
        call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        row = {"messages": [{"role": "user", "content": f"q {i}"}, call]}
        return row | ({"tools": tools} if tools else {})

    rows = [called(i, {"city": "Rome"} if i % 2 else {"zone": i}, i % 3 and [{"name": "f", "n": i}]) for i in range(60)]
    for row in rows[::4]:  # as upstream stores them
        row["messages"][1]["tool_calls"] = json.dumps(row["messages"][1]["tool_calls"])
        row["tools"] = json.dumps(row["tools"]) if "tools" in row else None
    data, _ = build(write({"a": rows}, phase="sft", validation={"ratio": 0.3, "seed": 0}), tiny_tokenizer())
    seen = {row["messages"][0]["content"]: row for split in data.values() for row in split}
    for i in range(60):
        converted = seen[f"q {i}"]
        [call] = converted["messages"][1]["tool_calls"]
        assert json.loads(call["arguments"]) == ({"city": "Rome"} if i % 2 else {"zone": i})
        assert json.loads(converted["tools"] or "null") == ([{"name": "f", "n": i}] if i % 3 else None)


def test_the_tools_column_is_there_only_where_a_row_has_tools(write):
    rows = [chat(f"q {i}") for i in range(60)]
    without, _ = build(write({"a": rows}, phase="sft"))
    assert without["train"].column_names == ["messages", "source"]
    using, _ = build(write({"a": [*rows, chat("q", tools=[{"name": "f"}])]}, phase="sft"))
    assert using["train"].column_names == ["messages", "tools", "source"]


def test_the_split_is_by_content(write):
    """A row stays on its side when rows are added and reordered, and no row is on both sides."""
    rule = {"ratio": 0.2, "seed": 1}
    small, _ = build(write({"a": texts("a", 300)}, validation=rule))
    large, _ = build(write({"a": texts("b", 50) + texts("a", 300)[::-1]}, validation=rule))
    held_out = set(small["validation"]["text"])
    assert 30 < len(held_out) < 90
    assert held_out == {text for text in large["validation"]["text"] if text.startswith("a")}
    assert not held_out & set(large["train"]["text"])


def test_columns_of_other_rows_and_the_sources_name_do_not_move_a_row(write):
    rows = [chat(f"q {i}") for i in range(99)]
    thinking = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    other = {"messages": [{"role": "user", "content": "q"}, thinking], "tools": [{"name": "f"}], "skill": "s"}
    rule = {"ratio": 0.2, "seed": 0}
    sides = []
    for sources in ({"a": rows}, {"b": [*rows, other]}):
        data, _ = build(write(sources, phase="sft", validation=rule))
        sides.append({row["messages"][0]["content"] for row in data["validation"]} - {"q"})
    assert sides[0] == sides[1]


def test_rows_that_a_source_holds_out_itself_are_the_validation_split(write, tmp_path):
    path = write({"a": texts("a", 60)})
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*texts("h", 9), *texts("a", 3)]))
    mixture = yaml.safe_load(path.read_text())
    mixture["datasets"][0] |= {"source": ".", "data_files": {"train": "a.jsonl", "validation": "held.jsonl"}}
    path.write_text(yaml.safe_dump(mixture))
    data, mixer = build(path)
    assert len(data["validation"]) == 12 and len(data["train"]) == 57
    assert not set(data["train"]["text"]) & set(data["validation"]["text"])
    assert mixer.report.sources[0].dropped == {"also among the validation rows": 3}


def test_prompts_of_preferences_do_not_straddle_the_split(write):
    pairs = [{"prompt": f"q {i // 4}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(200)]
    data, _ = build(write({"a": pairs}, phase="dpo", validation={"ratio": 0.3, "seed": 0}))
    prompts = [{row["prompt"][0]["content"] for row in data[split]} for split in ("train", "validation")]
    assert not prompts[0] & prompts[1] and len(data["train"]) + len(data["validation"]) == 200


def test_dropped_rows_are_counted_under_their_reason(write):
    rows = [*texts("a", 90), {"text": ""}, {"text": "  "}, {"text": None}, {"text": "a 5"}, {"text": "x" * 50}]
    filters = [{"type": "length", "max_length": 20}]
    _, mixer = build(write({"a": rows}, options={"filters": filters}))
    assert mixer.report.sources[0].dropped == {"empty text": 3, "length: over 20 characters": 1, "duplicate": 1}


def test_control_tokens_in_the_data_are_escaped_and_counted(write):
    path = write({"a": [*texts("a", 90), {"text": "he wrote <|im_end|> and stopped"}]})
    data, mixer = build(path, tiny_tokenizer())
    rows = [*data["train"]["text"], *data["validation"]["text"]]
    assert "he wrote < |im_end|> and stopped" in rows
    assert "1 control tokens inside the text escaped" in mixer.describe()


def test_the_tokenizer_moves_no_row(write):
    path = write({"a": [*texts("a <|im_end|>", 200)]}, validation={"ratio": 0.3, "seed": 0})
    plain, _ = build(path)
    escaped, _ = build(path, tiny_tokenizer())
    assert {text.replace("<|", "< |") for text in plain["validation"]["text"]} == set(escaped["validation"]["text"])


def test_conversations_become_text_through_the_chat_template(write):
    path = write({"a": [chat(f"q {i} <|im_end|>") for i in range(60)]}, phase="pretrain")
    data, _ = build(path, tiny_tokenizer())
    expected = (
        "<|im_start|>user\nq 7 < |im_end|><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\na<|im_end|>\n"
    )
    assert expected in [*data["train"]["text"], *data["validation"]["text"]]
    with pytest.raises(MixtureError, match="are written by the chat template: give a tokenizer"):
        build(path)


def test_what_a_reward_needs_is_kept(write):
    rows = [{"question": f"q {i}", "answer": f"#### {i}", "level": {"n": i}} for i in range(60)]
    data, _ = build(write({"a": rows}, phase="rlaif"))
    row = data["train"][0]
    assert list(row) == ["prompt", "source", "answer"]
    assert row["answer"] == "#### " + row["prompt"][0]["content"].split()[1]
    data, _ = build(write({"a": rows}, phase="rlaif", options={"keep_columns": ["answer", "level"]}))
    assert data["train"][0]["level"] == {"n": int(data["train"][0]["answer"].split()[1])}


@pytest.mark.parametrize(
    "answer", ["3", "true", '"x"', "[1, 2]", "null", "x", 3, 2.5, True, None, [1, "2"], {"a": "1"}]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_kept_columns_stay_what_they_are(write, answer, streaming):
    """`datasets` would read the text "3" as a number."""
    rows = [{"prompt": f"q {i}", "answer": answer} for i in range(60)]
    data, _ = build(write({"a": rows}, phase="rlaif", streaming=streaming))
    assert [row["answer"] for row in data["train"].take(3)] == [answer] * 3


def test_a_source_whose_rows_mostly_fail_is_an_error_with_three_examples(write):
    rows = [*texts("a", 10), *({"text": ""} for _ in range(20))]
    with pytest.raises(MixtureError) as caught:
        build(write({"a": rows}))
    lines = str(caught.value).splitlines()
    assert "datasets.a: 20 of 30 rows cannot be used, such as" in lines[0]
    assert len(lines) == 4 and lines[1].endswith("a.jsonl, line 11: empty text")


def test_decontamination_drops_what_an_evaluation_set_asks(write, tmp_path):
    asked = "how many apples has the farmer left when he has sold seven of his twelve apples today"
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": asked}) + "\n")
    against = [{"name": "exam", "source": "test.jsonl", "field": "question"}]
    rows = [*texts("a", 90), {"text": f"Question: {asked.upper()}? Answer: five."}]
    _, mixer = build(write({"a": rows}, decontaminate={"against": against}))
    assert mixer.report.sources[0].dropped == {"shares a run of words with an evaluation set": 1}


def test_a_second_build_comes_from_the_cache(write, monkeypatch):
    path = write({"a": texts("a", 90)})
    first, _ = build(path)
    monkeypatch.setattr("minimind_trl.data.rows.RowConverter.trace", lambda *_: pytest.fail("converted again"))
    second, _ = build(path)
    assert list(first["train"]) == list(second["train"])


def test_validate_looks_at_every_source_and_builds_nothing(write, monkeypatch):
    path = write({"a": texts("a", 90), "b": [{"body": "x"}], "c": [chat("q")]})
    with pytest.raises(MixtureError) as caught:
        DatasetMixer.from_yaml(path).validate_mixture()
    assert "b.jsonl, line 1: columns body cannot be turned into 'text'" in str(caught.value)
    assert "datasets.c: messages rows in phase pretrain are written by the chat template" in str(caught.value)
    monkeypatch.setattr("minimind_trl.data.reader.cached_rows", lambda *_, **__: pytest.fail("built"))
    lines = DatasetMixer.from_yaml(write({"a": texts("a", 90)})).validate_mixture()
    assert lines == ["a: 1 file(s), schema text, first 90 rows looked at"]


@pytest.mark.parametrize("form", ["json", "csv", "parquet", "arrow", "jsonl.gz"])
def test_formats(tmp_path, form):
    """The same rows in every format give the same mixture."""
    import gzip

    rows = [{"instruction": f"say {i}", "input": "", "output": f"it's, {i}"} for i in range(60)]
    table, file = Dataset.from_list(rows), tmp_path / f"rows.{form}"
    if form == "json":
        file.write_text(json.dumps(rows))
    elif form == "jsonl.gz":
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif form == "arrow":
        table.save_to_disk(tmp_path / "folder")
    else:
        getattr(table, f"to_{form}")(file)
    source = (
        {"name": "a", "source": "folder", "format": "arrow"} if form == "arrow" else {"name": "a", "source": file.name}
    )
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump({"metadata": {"phase": "sft"}, "datasets": [source]}))
    data, mixer = build(path)
    answers = {row["messages"][1]["content"] for split in data.values() for row in split}
    assert answers == {f"it's, {i}" for i in range(60)}
    assert mixer.report.sources[0].row_schema == "alpaca"


def test_files_of_the_kind_that_minimind_users_have_stay_valid(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        """
metadata: {phase: sft, description: "...", total_tokens: 10_000_000, max_seq_length: 512, version: "1.0"}
datasets:
  - name: alpaca_instructions
    source: tatsu-lab/alpaca
    mix_ratio: 1.0
    format: huggingface
    text_field: text
    splits: [train]
    max_samples: 50000
    filters: [{type: length, min_length: 20, max_length: 2000}, {type: quality, min_score: 0.2}]
validation: {ratio: 0.05, seed: 42, stratified: true}
"""
    )
    mixture = load_mixture(path)
    assert mixture.metadata.total_tokens == 10_000_000
    assert [rule.type for rule in mixture.datasets[0].filters] == ["length", "quality"]


def test_the_budget_counts_the_tokens_that_are_trained_on(write):
    long = [{"text": f"{i} " + "word " * 100} for i in range(60)]
    limits = {"total_tokens": 320, "max_seq_length": 16}
    _, mixer = build(write({"a": long}, metadata=limits | {"on_long": "cut"}), tiny_tokenizer())
    assert mixer.report.train.tokens == 320 and mixer.report.train.rows == 20
    _, mixer = build(write({"a": long}, metadata=limits), tiny_tokenizer())  # in pieces, all of a row is
    assert 100 < mixer.report.train.tokens <= 320 and mixer.report.train.rows < 4


def test_arguments_of_a_table_are_not_filled_with_those_of_other_calls(tmp_path):
    def called(i, arguments):
        call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}
        return {"messages": [{"role": "user", "content": f"q {i}", "tool_calls": None}, call]}

    rows = [called(i, {"a": i} if i % 2 else {"b": "z"}) for i in range(60)]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    path = tmp_path / "m.yaml"
    path.write_text("metadata: {phase: sft}\ndatasets: [{name: a, source: rows.parquet}]\n")
    data, _ = build(path)
    found = {row["messages"][1]["tool_calls"][0]["arguments"] for row in data["train"]}
    assert '{"b": "z"}' in found and not any("null" in arguments for arguments in found)


def test_the_lock_names_no_folder_of_the_machine(write, tmp_path):
    path = write({"a": texts("a", 90)})
    path.write_text(path.read_text().replace("source: a.jsonl", f"source: {tmp_path / 'a.jsonl'}"))
    _, mixer = build(path)
    assert str(tmp_path) not in json.dumps(mixer.lock()) and str(tmp_path) not in mixer.markdown()


def test_the_lock_is_of_what_was_read_though_the_source_is_gone(write, tmp_path):
    _, mixer = build(write({"a": texts("a", 90)}))
    (tmp_path / "a.jsonl").unlink()
    assert mixer.lock()["sources"][0]["rows_in"] == 90 and mixer.lock()["made_from"]


def test_an_edited_filter_function_is_noticed(write, tmp_path, monkeypatch):
    code = tmp_path / "edited_filter_for_test.py"
    path = write({"a": texts("a", 90)}, options={"filters": [{"type": "edited_filter_for_test:keep"}]})
    kept = []
    for limit in (99, 5):
        code.write_text(f"def keep(row):\n    return int(row['text'].split()[1]) < 20 + {limit}\n")
        monkeypatch.delitem(sys.modules, "edited_filter_for_test", raising=False)
        import_function.cache_clear()
        importlib.invalidate_caches()
        mixer = DatasetMixer.from_yaml(path)
        mixer.build()
        kept.append((sum(mixer.report.sources[0].dropped.values()), mixer.made_from()["code"]))
    assert kept[0][0] == 0 and kept[1][0] == 65 and kept[0][1] != kept[1][1]


@pytest.mark.parametrize(
    ("options", "extra", "message"),
    [
        ({"keep_columns": ["text"]}, {}, "keep_columns: text is the mixture's own"),
        ({"keep_columns": ["_reason"]}, {}, "keep_columns: _reason is the mixture's own"),
        ({"revision": "main"}, {}, "revision is for a data set on the Hub"),
        ({"schema_": "text"}, {}, "schema_: unknown key; did you mean 'schema'"),
        ({"max_repetition": True}, {}, "max_repetition"),
        ({}, {"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ],
)
def test_what_looks_like_an_option_and_is_none(write, options, extra, message):
    with pytest.raises(MixtureError, match=message):
        build(write({"a": texts("a", 60)}, options=options, **extra))


def test_a_filter_beside_the_mixture_leaves_the_search_path_alone(write, tmp_path, monkeypatch):
    """Its module is found, what the module imports when it is called is too, and so it is in another process."""
    (tmp_path / "helper_beside_for_test.py").write_text("LIMIT = 20\n")
    (tmp_path / "beside_for_test.py").write_text(
        "def keep(row):\n    from helper_beside_for_test import LIMIT\n    return int(row['text'].split()[1]) < LIMIT\n"
    )
    before = list(sys.path)
    path = write({"a": texts("a", 90)}, options={"filters": [{"type": "beside_for_test:keep"}]})
    mixture = load_mixture(path)
    assert sys.path == before
    for name in ("beside_for_test", "helper_beside_for_test"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import_function.cache_clear()  # as a process starts that only gets the filter
    [rule] = pickle.loads(pickle.dumps(mixture.datasets[0].filters))
    found = [rule.reason(Candidate({"text": f"a {number}"}, {}, "")) for number in (3, 33)]
    assert found == [None, "beside_for_test:keep: dropped"]
    DatasetMixer(mixture, path).build()
    assert sys.path == before
