"""Before an online run starts: which rewards could teach something, how prompts are asked, and how many answers."""

from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict

from minimind_trl.errors import InputError
from minimind_trl.rewards import Reward, load_rewards
from minimind_trl.run import parse_arguments
from minimind_trl.run.online_configs import GRPORecipeConfig, PPORecipeConfig, SPORecipeConfig
from minimind_trl.run.rl_flight_check import reward_problem, rl_flight_check
from minimind_trl.run.rl_run import _tokenized, _with_thinking, _with_tools
from minimind_trl.tokenization import inference_template, tiny_tokenizer
from minimind_trl.trainers import MiniMindGRPOTrainer
from tests.conftest import REPOSITORY
from tests.trainers.online import QUICK, bandit_model, prompts

CONFIGS = {"grpo": GRPORecipeConfig, "ppo": PPORecipeConfig, "spo": SPORecipeConfig}
UNKNOWN = (float("-inf"), float("inf"))


def answers(*rewards: float | None) -> list[dict]:
    return [{"prompt": "?", "completion": "4", "reward": reward} for reward in rewards]


@pytest.mark.parametrize(
    ("reward_range", "reward", "problem", "warning"),
    [
        ((0, 1), 0, None, "got the lowest reward, 0. So many answers show a success rate of about 9% or more"),
        ((-1, 1), -1, None, "got the lowest reward, -1. So many answers show a success rate of about 9%"),
        ((0, 1), 0.5, None, "got the same reward, 0.5. So many answers show a success rate of about 9%"),
        ((0, 1), 1, None, "got the highest reward, 1: these prompts teach nothing more"),
        (UNKNOWN, 0, None, "got the same reward, 0. So many answers show a success rate of about 9%"),
        (UNKNOWN, 1, "the reward is 1 for all of 32 answers to training prompts: nothing to learn from", None),
        ((1, 1), 1, "the reward can only be 1: nothing to learn from", None),
    ],
)
def test_only_a_reward_that_cannot_vary_is_a_problem(reward_range, reward, problem, warning):
    found = reward_problem(reward_range, answers(*[reward] * 32))
    for wanted, line in zip((problem, warning), found, strict=True):
        assert (wanted is None) == (line is None) and (wanted or "") in (line or ""), line
    assert reward_problem((0, 1), answers(*[0] * 31, 1)) == (None, None)
    assert reward_problem((0, 1), answers(None, None)) == (None, None)


def test_more_answers_show_rarer_successes():
    _, line = reward_problem((0, 1), answers(*[0] * 299))
    assert "all of 299 trial answers" in line and "about 1% or more" in line


def checked(folder, reward: Reward, columns: dict | None = None, **options) -> str:
    """rl_flight_check on a GRPO run that has nothing else to refuse."""
    rows = [row | {name: values[n] for name, values in (columns or {}).items()} for n, row in enumerate(prompts(24))]
    held_out = rows[0] | {"prompt": [{"role": "user", "content": "held out"}]}
    data = DatasetDict(train=Dataset.from_list(rows), validation=Dataset.from_list([held_out]))
    options = {**QUICK, "num_generations": 4, "gradient_accumulation_steps": 1, **options}
    config = GRPORecipeConfig(output_dir=str(folder), **options)
    trainer = MiniMindGRPOTrainer(
        bandit_model(), [reward], config, train_dataset=data["train"], processing_class=tiny_tokenizer()
    )
    args, mixer = SimpleNamespace(tokenizer=None, from_weight=None), SimpleNamespace(report=None)
    rl_flight_check(trainer, SimpleNamespace(args=args, tokenizer=tiny_tokenizer(), data=data, mixer=mixer))


def sparse(prompts, completions, **_) -> list[float]:
    return [0.0] * len(prompts)


def test_a_sparse_reward_starts_with_a_warning(tmp_path, capsys):
    checked(tmp_path, Reward(sparse, "sparse", 0, 1))
    lines = capsys.readouterr().err.splitlines()
    assert "warning: all of 16 trial answers got the lowest reward, 0." in lines[-1]
    assert "success rate of about 17% or more" in lines[-1]


def test_a_constant_starts_on_request_alone(tmp_path, capsys):
    constant = Reward(lambda prompts, completions, **_: [1.0] * len(prompts), "constant")
    with pytest.raises(InputError, match="--allow_equal_rewards true goes on anyway"):
        checked(tmp_path, constant)
    checked(tmp_path, constant, allow_equal_rewards=True)
    assert "warning: the reward is 1 for all of 16 answers" in capsys.readouterr().err


def test_right_answers_that_no_reward_can_read_are_counted_before_training(tmp_path, capsys):
    pytest.importorskip("math_verify")
    [reward], _ = load_rewards(["math_accuracy"])
    golds = [r"\frac{5\pi}{6}", "no idea", "#### 42\nDone", "who knows"] * 6
    rewards = Reward(lambda prompts, completions, answer, **_: [0.0] * len(prompts), "math_accuracy", 0, 1)
    rewards.can_score = reward.can_score
    checked(tmp_path, rewards, {"answer": golds})
    assert (
        "warning: reward math_accuracy cannot score 12 of the 24 train prompts, such as one with answer 'no idea': "
        "their answers get no reward from it" in capsys.readouterr().err
    )
    with pytest.raises(
        InputError, match="reward math_accuracy can score none of the 24 train prompts, such as one with"
    ):
        checked(tmp_path, rewards, {"answer": ["no idea"] * 24})


# --- thinking ---


def asked(count: int, **columns) -> DatasetDict:
    rows = [row | columns for row in prompts(count)]
    return DatasetDict(train=Dataset.from_list(rows), validation=Dataset.from_list(rows[:1]))


def config_of(folder, **options) -> GRPORecipeConfig:
    return GRPORecipeConfig(output_dir=str(folder), use_cpu=True, bf16=False, **options)


def test_a_share_of_the_prompts_opens_a_think_block_always_the_same_ones(tmp_path):
    tokenizer, data = tiny_tokenizer(), asked(1000)
    config = config_of(tmp_path, thinking_ratio=0.9)
    thinking = [
        row["chat_template_kwargs"]["open_thinking"] for row in _with_thinking(config, data, tokenizer)["train"]
    ]
    assert 0.87 < sum(thinking) / 1000 < 0.93
    again = _with_thinking(config, DatasetDict(train=data["train"].select(range(500, 1000))), tokenizer)["train"]
    assert [row["chat_template_kwargs"]["open_thinking"] for row in again] == thinking[500:]
    other = _with_thinking(config_of(tmp_path, thinking_ratio=0.9, seed=1), data, tokenizer)["train"]
    assert [row["chat_template_kwargs"]["open_thinking"] for row in other] != thinking
    assert _with_thinking(config_of(tmp_path), data, tokenizer) is data


def test_prompts_with_tools_become_text_with_their_think_block(tmp_path):
    tokenizer, tools = tiny_tokenizer(), '[{"type": "function", "function": {"name": "add"}}]'
    config = config_of(tmp_path, thinking_ratio=1.0)
    rows = _with_tools(config, _with_thinking(config, asked(2, tools=tools), tokenizer), tokenizer)["train"]
    assert rows[0]["prompt"].endswith("assistant\n<think>\n") and "# Tools" in rows[0]["prompt"]


def test_lengths_are_of_prompts_as_they_are_asked(tmp_path):
    tokenizer, config = tiny_tokenizer(), config_of(tmp_path, chat_template_kwargs={"open_thinking": True})
    [ids] = _tokenized(config, tokenizer, prompts(1))
    assert tokenizer.decode(ids).endswith("<think>\n")


def test_a_template_without_think_blocks_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = inference_template("minimind2")
    with pytest.raises(InputError, match=r"--thinking_ratio 0.9: the tokenizer's chat template has no open_thinking"):
        _with_thinking(config_of(tmp_path, thinking_ratio=0.9), asked(2), tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking_ratio": 90}, "--thinking_ratio 90: a share, between 0 and 1"),
        (
            {"thinking_ratio": 0.5, "chat_template_kwargs": {"open_thinking": True}},
            "leave it out of chat_template_kwargs",
        ),
    ],
)
def test_shares_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        config_of(tmp_path, **options)


# --- how many answers ---


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_start_without_settings_trains_on_enough_answers(recipe, tmp_path):
    config = CONFIGS[recipe](output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert config.generation_batch_size == 64


@pytest.mark.parametrize("recipe", CONFIGS)
def test_the_config_for_one_gpu_asks_for_enough_answers_and_trains_on_them_twice(recipe):
    path = REPOSITORY / f"recipes/configs/{recipe}/minimind3.yaml"
    _, config, _ = parse_arguments(CONFIGS[recipe], options=["--config", str(path)])
    assert 64 <= config.generation_batch_size <= 128 and config.num_iterations == 2
    assert config.thinking_ratio == 0.9 and config.reward_funcs[0].startswith("minimind3:")
    if recipe == "ppo":
        assert config.num_ppo_epochs == 2 and config.target_kl == 0.25 and config.vf_coef == 0.5
