"""`--tools` and `--environment` of the online recipes."""

import json

import pytest
from datasets import Dataset, DatasetDict

from minimind_trl.run.online_configs import GRPORecipeConfig
from minimind_trl.run.rl_run import _tokenized, _tool_problems
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.tools import load_tools, tool_schemas
from tests.recipes.launching import QUICK, as_options, launch
from tests.recipes.test_online_recipes import ONLINE
from tests.trainers.tool_world import Sum

TOOLS = [*load_tools(["calculator", "weather"]).values()]


class Other(Sum):
    pass


def data(**columns) -> DatasetDict:
    rows = [{"prompt": [{"role": "user", "content": "?"}]} | columns] * 2
    return DatasetDict(train=Dataset.from_list(rows))


def test_rows_may_offer_what_has_a_function():
    assert not [*_tool_problems(TOOLS, {}, data())]
    assert not [*_tool_problems(TOOLS, {}, data(tools=json.dumps(tool_schemas(TOOLS))))]
    assert not [*_tool_problems([], {}, data(tools='[{"name": "unknown"}]'))]  # they are rendered, and not run
    [problem] = _tool_problems(TOOLS, {}, data(tools='[{"name": "calculate_math"}]'))
    assert problem.startswith("rows offer the tool 'calculate_math', and no function has this name; did you mean")
    assert "--tools minimind3" in problem


def test_rows_say_which_of_several_environments_they_are_for():
    both = {"Sum": Sum, "Other": Other}
    assert not [*_tool_problems([], both, data(environment="Sum"))]
    assert not [*_tool_problems([], {"Sum": Sum}, data())]
    [problem] = _tool_problems([], both, data())
    assert "the rows' column `environment` says which one a row is for, and they have none" in problem
    [problem] = _tool_problems([], both, data(environment="Summ"))
    assert problem == "rows ask for the environment 'Summ'; did you mean 'Sum'?"


def test_lengths_count_the_tools_that_a_prompt_shows(tmp_path):
    config, tokenizer = GRPORecipeConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False), tiny_tokenizer()

    def lengths(*given, **columns) -> list[int]:
        return [len(ids) for ids in _tokenized(config, tokenizer, data(**columns)["train"], *given)]

    bare, shown = lengths(), lengths(TOOLS)
    assert bare[0] + 100 < shown[0] < lengths(TOOLS, {"Sum": Sum})[0]
    assert lengths(TOOLS, tools=json.dumps(tool_schemas(TOOLS[:1])))[0] < shown[0]


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(one, marks=pytest.mark.slow if one == "grpo" else pytest.mark.exhaustive) for one in ONLINE],
)
def test_every_online_recipe_takes_tools_and_an_environment(pretrained, tmp_path, recipe):
    options = QUICK | ONLINE[recipe] | {"max_steps": 2, "from_weight": pretrained}
    options |= {"tools": "calculator", "environment": "tests.trainers.tool_world:Sum", "output_dir": tmp_path}
    options |= {"gradient_accumulation_steps": 1, "per_device_eval_batch_size": 8, "eval_interval": 2}
    done = launch(recipe, "--config", f"recipes/configs/{recipe}/tiny.yaml", *as_options(**options))
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    names = ("reward", "rewards/Sum", "success", "tools/calls", "tools/failed_calls", "tools/turns")
    assert all(f"eval_{name}" in metrics["after"] for name in names)
    assert json.loads((tmp_path / "recipe.json").read_text())["options"]["tools"] == ["calculator"]
