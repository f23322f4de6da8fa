"""KTO's rows, an answer with a label: bad answers are not imitated, and make pairs with good ones."""

from collections import Counter

import pytest

from minimind_trl.cli import main
from minimind_trl.data import DatasetMixer, MixtureError
from minimind_trl.tokenization import tiny_tokenizer
from tests.data.test_schemas import assistant, convert, user

GOOD = {"messages": [user("q"), assistant("a")]}


def built(path):
    mixer = DatasetMixer.from_yaml(path)
    return mixer.build(), mixer.report.sources[0]


def labelled(number, answer, label):
    return {"prompt": f"q{number}", "completion": f"{answer} {number}", "label": label}


def as_messages(row):
    messages = [user(row["prompt"]), assistant(row["completion"])]
    return {"messages": messages, "kto_tag": row["label"]}


@pytest.mark.parametrize("phase", ["sft", "distill", "midtrain"])
@pytest.mark.parametrize("label", [False, "false", "False", 0, 0.0, "undesirable"])
def test_a_bad_answer_is_not_imitated(label, phase):
    for row in ({"prompt": "q", "completion": "a"}, GOOD, {"conversations": GOOD["messages"]}):
        assert convert(row | {"label": label}, phase, tiny_tokenizer()).startswith("label is false")


@pytest.mark.parametrize("label", [True, "true", 1, None, "", "desirable"])
def test_a_good_answer_is(label):
    assert convert({"prompt": "q", "completion": "a", "label": label}, "sft") == GOOD


def test_a_class_is_no_label():
    assert convert({"question": "q", "answer": "a", "label": 0}, "sft") == GOOD
    assert convert({"prompt": "q", "completion": "a", "label": 3}, "sft") == GOOD
    assert convert({"text": "a film", "label": 0}, "pretrain") == {"text": "a film"}


def test_all_rows_are_counted(write):
    rows = [labelled(number, "HARMFUL" if number % 2 else "good", number % 2 == 0) for number in range(60)]
    data, source = built(write({"a": rows}, phase="sft", validation={"ratio": 0.2, "seed": 1}))
    assert source.dropped == {"label is false: a bad answer, to learn from in phase dpo": 30}
    told = [row["messages"][1]["content"] for split in data.values() for row in split]
    assert len(told) == 30 and not any("HARMFUL" in text for text in told)


@pytest.mark.parametrize("spelt", [dict, as_messages])
@pytest.mark.parametrize("phase", ["dpo", "reward"])
def test_answers_to_one_prompt_become_pairs(write, phase, spelt):
    rows = [labelled(number, "good", True) for number in range(40)]
    rows += [labelled(number, "bad", False) for number in range(10, 50)]
    rows += [labelled(0, "better", True), {**labelled(1, "x", True), "completion": ""}]
    path = write({"a": list(map(spelt, rows))}, phase=phase, validation={"ratio": 0.2, "seed": 1})
    data, source = built(path)
    pairs = [row for split in data.values() for row in split]
    assert len(pairs) == 30
    for pair in pairs:
        [asked], [chosen], [rejected] = pair["prompt"], pair["chosen"], pair["rejected"]
        number = asked["content"].removeprefix("q")
        assert (chosen["content"], rejected["content"]) == (f"good {number}", f"bad {number}")
    assert Counter(source.dropped) == {
        "the worse answer of a pair": 30,
        "no bad answer (label false) is left for its prompt": 11,
        "no good answer (label true) is left for its prompt": 10,
        "empty completion" if spelt is dict else "empty assistant message": 1,
    }
    assert source.rows_in == len(rows)


def test_no_pair_is_made_across_the_split_of_the_source(write):
    both = [labelled(number, *kind) for number in range(9) for kind in (("good", True), ("bad", False))]
    path = write({"a": [*both, labelled(99, "good", True)], "own": [*both[:2], labelled(99, "bad", False)]})
    path.write_text(
        "metadata: {phase: dpo}\ndatasets:\n  - name: a\n    source: .\n    format: jsonl\n"
        "    data_files: {train: a.jsonl, validation: own.jsonl}\n"
    )
    data, source = built(path)
    assert (len(data["train"]), len(data["validation"])) == (8, 1)
    assert source.dropped["no bad answer (label false) is left for its prompt"] == 1
    assert source.dropped["no good answer (label true) is left for its prompt"] == 1


def test_explain_shows_the_pair_of_a_row(write, capsys):
    rows = [labelled(number, *kind) for number in range(40) for kind in (("good", True), ("bad", False))]
    path = str(write({"a": rows}, phase="dpo"))
    assert main(["data", "explain", path, "--row", "3"]) == 0
    out = capsys.readouterr().out
    assert '"chosen": [{"role": "assistant", "content": "good 1"' in out and '"content": "bad 1"' in out
    assert main(["data", "explain", path, "--row", "4"]) == 0
    assert "convert: dropped: the worse answer of a pair" in capsys.readouterr().out
    assert main(["data", "check", path]) == 0
    assert "schema kto, first 80 rows looked at" in capsys.readouterr().out


def test_a_stream_never_sees_both(write):
    path = write({"a": [labelled(number, "good", True) for number in range(9)]}, phase="dpo", streaming=True)
    with pytest.raises(
        MixtureError, match=r"datasets.a: answers with a label \(KTO\) become pairs over the whole source"
    ):
        DatasetMixer.from_yaml(path).build()
