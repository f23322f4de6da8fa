"""`minimind-trl eval --tools`: which calls and answers are right."""

import json

import pytest

from minimind_trl.cli import main
from minimind_trl.errors import InputError
from minimind_trl.evaluation import tool_use
from minimind_trl.evaluation.answers import share_contained
from minimind_trl.evaluation.tool_use import guessing_tools, tool_measures, tool_prompts
from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.tools import TOOLS, OfferedTools, tool_schemas
from tests.conftest import small_config

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return MiniMindForCausalLM(small_config("dense3", max_position_embeddings=4096))


@pytest.fixture
def saying(monkeypatch):
    """The model's turns, by what the prompt's last message contains; what it was asked is returned."""

    def say(turns: dict[str, str]) -> list[str]:
        asked = []

        def generate(model, tokenizer, texts, max_new_tokens):
            asked.extend(texts)
            last = [text.rpartition("<|im_start|>assistant")[0].rpartition("<|im_start|>")[2] for text in texts]
            said = [next(turn for part, turn in turns.items() if part in text) for text in last]
            return [tokenizer(turn + "<|im_end|>", add_special_tokens=False).input_ids for turn in said]

        monkeypatch.setattr(tool_use, "generate_tokens", generate)
        return asked

    return say


def call(name: str, **arguments) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def row(prompt: str, gt: list[str] | None, *calls: tuple[str, dict], tools=("calculator", "unit_convert")) -> dict:
    expected = [{"name": name, "arguments": arguments} for name, arguments in calls]
    schemas = json.dumps(tool_schemas(TOOLS[name] for name in tools))
    return {"prompt": [{"role": "user", "content": prompt}], "tools": schemas, "gt": gt, "calls": json.dumps(expected)}


def measured(model, rows: list[dict]) -> dict[str, tuple[float, int]]:
    prompts, left_out = tool_prompts(rows)
    assert left_out == 0
    figures = tool_measures(model, TOKENIZER, prompts, 64)
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
    return {name.removeprefix("tools/"): (figure.value, figure.count) for name, figure in figures.items()}


def test_the_prompts_that_come_with_the_package_have_the_answers_of_their_calls():
    prompts, left_out = tool_prompts()
    assert len(prompts) == 40 and left_out == 0 and sum(not prompt.expected for prompt in prompts) == 4
    for prompt in prompts:
        assert len(prompt.tools) == len({*prompt.names}) == 3
        for name, arguments in prompt.expected:
            assert name in prompt.names
            assert share_contained(OfferedTools([TOOLS[name]], 1000)[name](**arguments), prompt.gt) == 1
    names = [name for prompt in prompts for name, _ in prompt.expected]
    assert {names.count(name) for name in names} == {6} and len({*names}) == 6
    assert guessing_tools(prompts)["tools/right_call"].value == 0.25


def test_calls_are_run_and_the_answer_is_made_of_their_results(model, saying):
    asked = saying({"6 x 7": call("calculator", expression="7*6"), "42": "It is 42.", "joke": "No."})
    figures = measured(model, [row("6 x 7?", ["42"], ("calculator", {"expression": "6 * 7"})), row("a joke", None)])
    assert figures == {
        "right_call": (1, 2),
        "right_arguments": (1, 1),
        "right_answer": (1, 1),
        "readable_calls": (1, 1),
    }
    assert len(asked) == 3 and "calculator" in asked[0] and "42" in asked[2].rpartition("7*6")[2]


@pytest.mark.parametrize(
    ("said", "right_call", "right_arguments", "readable"),
    [
        (call("unit_convert", value=1, from_unit="km", to_unit="m"), 0, 0, 1),
        (call("calculator", expression="6 * 8"), 1, 0, 1),
        (call("calculator", expression="6 **"), 1, 0, 1),
        (call("calculator", formula="6 * 7"), 1, 0, 1),
        (call("calculator", expression="6 * 7") * 2, 0, 0, 1),
        (call("calculater", expression="6 * 7"), 0, 0, 0),
        (call("weather", location="London"), 0, 0, 0),  # there is one, but it is not offered
        ('<tool_call>\n{"name": "calculator", "arguments"\n</tool_call>', 0, 0, 0),
        ("The tool calculator would say 42.", 0, 0, None),
    ],
)
def test_wrong_calls(model, saying, said, right_call, right_arguments, readable):
    saying({"6 x 7": said, "": "Done: 4,200."})
    figures = measured(model, [row("6 x 7?", ["4200"], ("calculator", {"expression": "6 * 7"}))])
    assert figures["right_call"][0] == right_call and figures["right_arguments"][0] == right_arguments
    assert figures.get("readable_calls", (None,))[0] == readable
    assert figures["right_answer"][0] == (readable is not None)  # whatever was called


def test_an_answer_inside_a_call_is_none_and_calling_ends(model, saying):
    asked = saying({"": call("calculator", expression="42")})
    figures = measured(model, [row("6 x 7?", ["42"], ("calculator", {"expression": "6 * 7"}))])
    assert figures["right_answer"] == (0, 1) and figures["right_arguments"] == (1, 1) and len(asked) == 6


def test_results_bring_no_control_tokens(model, saying):
    asked = saying({"6 x 7": call("weather", location="<|im_end|>"), "": "No."})
    measured(model, [row("6 x 7?", ["42"], ("weather", {"location": "London"}), tools=["weather"])])
    assert "<|im_end|>" not in asked[1].rpartition("<tool_response>")[2].partition("</tool_response>")[0]


def test_rows_of_other_tools_are_left_out():
    rows = [row("a", ["1"]), row("b", ["1"]) | {"tools": None}, row("c", None) | {"calls": None}]
    other = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    prompts, left_out = tool_prompts([*rows, row("d", ["1"]) | {"tools": json.dumps(other)}])
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["a"] and left_out == 3
    with pytest.raises(InputError, match="no row has `tools` of these names and a `gt`: calculator"):
        tool_prompts(rows[1:])


def test_a_prompt_that_does_not_fit_is_refused(saying):
    small = MiniMindForCausalLM(small_config("dense3", max_position_embeddings=128))
    with pytest.raises(InputError, match=r"a prompt has \d+ tokens, and 64 are left of the model's context beside"):
        tool_measures(small, TOKENIZER, tool_prompts([row("a", ["1"])])[0], 64)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def mixture(tmp_path, phase: str, rows: list[dict]) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    path = tmp_path / f"{phase}.yaml"
    path.write_text(
        f"metadata: {{phase: {phase}, max_seq_length: 4096}}\n"
        "datasets: [{name: own, source: rows.jsonl, keep_columns: [gt, calls]}]\n"
        "validation: {ratio: 0.5}\n"
    )
    return str(path)


def test_the_command_measures_a_mixture(checkpoint, saying, tmp_path, capsys):
    saying({"x 7": call("calculator", expression="6*7"), "": "42"})
    rows = [row(f"{n} x 7?", ["42"], ("calculator", {"expression": "6 * 7"}), tools=["calculator"]) for n in range(8)]
    path = mixture(tmp_path, "rlaif", rows)
    words = ["eval", checkpoint, "--tools", "--data_config", path, "--output", str(tmp_path / "figures.json")]
    assert main([*words, "--baseline", checkpoint]) == 0
    report = json.loads((tmp_path / "figures.json").read_text())
    for column in ("model", "baseline"):
        figures = report["figures"][column]
        assert figures["tools/right_arguments"]["value"] == 1 and figures["tools/right_arguments"]["count"] > 1
    assert report["figures"]["chance"]["tools/right_call"]["value"] == 0.5
    assert report["options"]["max_new_tokens"] == 256
    assert "tools/right_answer" in capsys.readouterr().out


def test_the_command_refuses_other_phases(checkpoint, tmp_path, capsys):
    path = mixture(tmp_path, "pretrain", [{"text": "a"}, {"text": "b"}])
    assert main(["eval", checkpoint, "--tools", "--data_config", path]) == 2
    error = capsys.readouterr().err
    assert "--tools asks prompts of a mixture of phase rlaif" in error and error.count("\n") == 1


def test_the_command_refuses_a_folder_without_a_checkpoint(tmp_path, capsys):
    assert main(["eval", str(tmp_path), "--tools"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no checkpoint: config.json is missing\n"
