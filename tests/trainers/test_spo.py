"""SPO: prompts by their text, how far the policy has moved, what is stored, self-play."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from minimind_trl.errors import InputError
from minimind_trl.rewards import Reward
from minimind_trl.trainers import SPOConfig
from minimind_trl.trainers.spo_trainer import prompt_numbers
from tests.trainers.online import QUICK, low_ids, online, prompts


def mix(low: float, high: float) -> Reward:
    """A reward at the ends of its range and between them."""
    ends = (low, high, (low + high) / 2)
    return Reward(lambda prompts, completions, **_: [ends[n % 3] for n in range(len(prompts))], "mix", low, high)


def test_rewards_at_the_ends_of_their_range_train_with_the_global_tracker(tmp_path):
    trainer = online("spo", tmp_path, reward=mix(-4.75, 4.75), tracker="global", max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1 and trainer.state.log_history[0]["baseline"] == 0.5


def moved_trainer(folder, **options):
    """A trainer with a stored answer to prompt 0, of three tokens, one of them a tool's; and a rollout that asks it."""
    trainer = online("spo", folder, **options)
    trainer.model.eval()
    ids = torch.tensor([5, 6, 7], dtype=torch.int32)
    asked = {"prompt_ids": torch.tensor([[3, 4], [3, 4]]), "prompt_mask": torch.ones(2, 2, dtype=torch.long)}
    tokens = asked | {"completion_ids": ids.long().repeat(2, 1), "completion_mask": torch.ones(2, 3, dtype=torch.long)}
    now = trainer.logps_of(trainer.model, tokens)[0][0]
    trainer.last_answers[0] = (ids, now - torch.tensor([0.3, math.nan, -0.1]))

    return trainer, SimpleNamespace(rows=[{"prompt_number": 0}, {"prompt_number": 1}], tensors=asked)


def test_how_far_the_policy_has_moved_is_the_authors_mean_change(tmp_path):
    trainer, rollout = moved_trainer(tmp_path)
    assert trainer.divergences(rollout).tolist() == pytest.approx([(0.3 + 0.1) / 2, 0.0], abs=1e-5)


def test_or_the_kl(tmp_path):
    trainer, rollout = moved_trainer(tmp_path, rho_divergence="k3")
    k3 = [math.exp(x) - 1 - x for x in (0.3, -0.1)]
    assert trainer.divergences(rollout).tolist() == pytest.approx([sum(k3) / 2, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho_divergence": "kl"}, "--rho_divergence kl: must be one of abs, k3"),
        ({"tracker": "global", "rho_divergence": "k3"}, "--rho_divergence is for --tracker prompt"),
    ],
)
def test_other_measures_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        SPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_rows_with_the_same_prompt_share_a_number():
    rows = prompts(3).to_list()
    rows = [row | {"answer": str(n)} for n, row in enumerate([rows[0], rows[1], rows[0], rows[2]])]
    data = Dataset.from_list(rows)
    assert prompt_numbers(data) == [0, 1, 0, 2]
    assert prompt_numbers(data, whole_rows=True) == [0, 1, 2, 3]
    thinking = [row | {"chat_template_kwargs": {"open_thinking": n == 2}} for n, row in enumerate(rows)]
    assert prompt_numbers(Dataset.from_list(thinking)) == [0, 1, 2, 3], "another way to ask is another prompt"


def test_what_one_row_gets_the_other_with_its_prompt_knows(tmp_path):
    twice = Dataset.from_list(prompts(12).to_list() * 2)
    trainer = online("spo", tmp_path, rows=twice, max_steps=2, init_rollouts=1)
    trainer.train()
    assert len(trainer.tracker.a) == 12 and set(trainer.last_answers) <= set(range(12)) and trainer.last_answers
    effective = [log["effective_prompts"] for log in trainer.state.log_history if "effective_prompts" in log]
    assert 1 <= max(effective) <= 12 + 1e-6


def test_what_all_processes_share_is_saved_by_one(tmp_path, monkeypatch):
    trainer = online("spo", tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    mine = torch.load(tmp_path / "checkpoint-1" / "rollout_state-0.pt", weights_only=True)
    shared = torch.load(tmp_path / "checkpoint-1" / "rollout_state-shared.pt", weights_only=True)
    assert mine["trainer"] is None and len(shared["answers"]["numbers"]) == len(trainer.last_answers) > 0
    monkeypatch.setattr(type(trainer.args), "should_save", False)  # as of another process
    trainer.save_optimizer_and_scheduler(str(tmp_path / "other"))
    assert [path.name for path in (tmp_path / "other").glob("rollout_state-*")] == ["rollout_state-0.pt"]


def test_self_play_with_tools_or_an_environment_is_refused(tmp_path):
    """The opponent would answer without them, and lose for it."""
    trainer = online("spo", tmp_path / "alone", opponent="snapshot")
    for name, value in {"tools": [print], "environment_factories": {None: dict}, "rollout_func": print}.items():
        kept = getattr(trainer, name)
        setattr(trainer, name, value)
        with pytest.raises(InputError, match="--opponent snapshot: the opponent answers in one turn, without tools"):
            trainer._opponent_pool()
        setattr(trainer, name, kept)
    trainer._opponent_pool()


class Guessing:
    """An environment as TRL calls it."""

    def reset(self, **_) -> str:
        return " Guess!"

    def guess(self, number: int) -> str:
        """
        Guess.

        Args:
            number: the guess.
        """
        return "no"


def test_the_environment_of_a_run_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.chat_template_utils import qwen3_template

    from minimind_trl.tokenization import tiny_tokenizer
    from minimind_trl.trainers import SPOTrainer
    from tests.trainers.online import bandit_model

    tokenizer = tiny_tokenizer()
    tokenizer.response_template = qwen3_template
    config = SPOConfig(output_dir=str(tmp_path), **QUICK, opponent="snapshot")
    more = {"processing_class": tokenizer, "environment_factory": Guessing}
    with pytest.raises(InputError, match="--opponent snapshot: the opponent answers in one turn"):
        SPOTrainer(bandit_model(), low_ids, config, prompts(24), **more)
