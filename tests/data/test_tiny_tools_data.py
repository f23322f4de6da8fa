"""The tool tasks of the embedded world: right answers, nothing held out in training, digits that stay apart."""

import json
import re
import shutil

import pytest

from minimind_trl.data import DatasetMixer
from minimind_trl.tokenization import tiny_tokenizer, train_tokenizer
from minimind_trl.tools import TOOLS, load_tools
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "data_configs" / "tiny-tools"
OPERATORS = {"plus": "+", "minus": "-", "times": "*"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A copy of the mixtures with their data, as `make_data.py` writes them."""
    folder = tmp_path_factory.mktemp("tiny-tools")
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data", "__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        patch.setattr("sys.argv", ["make_data.py", "--output_dir", str(folder / "data")])
        import make_data

        make_data.main()
    return folder


def rows(world, name: str) -> list[dict]:
    return [json.loads(line) for line in (world / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def worked_out(question: str, price) -> tuple[list[dict], str]:
    """The calls and the answer, from the wording alone."""
    item, a, word, b = re.fullmatch(r"(?:price of (\d+)|(\d+))(?: (\w+) (\d+))?\?", question).groups()
    calls = [{"name": "price", "arguments": {"item": int(item)}}] if item else []
    number = price(int(item)) if item else int(a)
    if word:
        expression = f"{number} {OPERATORS[word]} {b}"
        calls.append({"name": "calculator", "arguments": {"expression": expression}})
        number = TOOLS["calculator"](expression)
    return calls, str(number)


def test_answers_and_calls_are_right(world):
    price = load_tools(["price_list:price"], world)["price"]
    for split in ("train", "validation"):
        for row in rows(world, f"rlaif_{split}"):
            assert (json.loads(row["expected_calls"]), row["answer"]) == worked_out(row["prompt"], price)
        for row in rows(world, f"sft_{split}"):
            calls, answer = worked_out(row["messages"][0]["content"], price)
            made = [one["function"] for turn in row["messages"] for one in turn.get("tool_calls", [])]
            assert made in ([], calls) and row["messages"][-1]["content"] == answer


def test_one_sft_chat_in_six_calls_and_nothing_held_out_is_trained_on(world):
    sft = rows(world, "sft_train")
    assert sum(len(row["messages"]) > 2 for row in sft) == 40 and len(sft) == 238
    held_out = {row["prompt"] for row in rows(world, "rlaif_validation")}
    assert {row["messages"][0]["content"] for row in rows(world, "sft_validation")} == held_out
    trained = {row["prompt"] for row in rows(world, "rlaif_train")}
    trained |= {row["messages"][0]["content"] for row in sft}
    trained |= {
        re.sub("^(say|call) ", "", row["messages"][0]["content"])
        for name in ("copies", "calls")
        for row in rows(world, f"{name}_train")
    }
    assert not trained & held_out


def test_every_stage_finds_its_rows_and_the_tools(world):
    for phase, counts in (("sft", (2 * 238, 2 * 60)), ("rlaif", (1200, 150))):
        data = DatasetMixer.from_yaml(world / f"{phase}.yaml").build(tiny_tokenizer())
        assert (len(data["train"]), len(data["validation"])) == counts
        assert [tool["function"]["name"] for tool in json.loads(data["train"][0]["tools"])] == ["calculator", "price"]


def test_every_digit_is_a_token(world):
    tokenizer = train_tokenizer((row["text"] for row in rows(world, "words")), 531)
    assert tokenizer.tokenize("price of 482 times 917?") == ["price", "Ġof", "Ġ", *"482", "Ġtimes", "Ġ", *"917", "?"]


def test_results_of_every_length_are_copied_in_pretraining(world):
    lengths = [len(row["messages"][-1]["content"]) for row in rows(world, "calls_train")]
    assert all(lengths.count(length) > 100 for length in range(1, 7))
