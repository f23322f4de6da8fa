"""Our online trainers take what TRL's take: a path, no config, a PeftModel with a reference, several answers."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from minimind_trl.errors import InputError
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.trainers import PPOConfig, RolloutConfig, SPOConfig
from tests.trainers.online import METHODS, bandit_model, bounded, equal, online, prompts, weights

ALL = list(METHODS)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def trained_adapter() -> PeftModel:
    """A policy whose adapter has been trained."""
    torch.manual_seed(3)
    policy = get_peft_model(bandit_model(), LoraConfig(**LORA, init_lora_weights=False))
    assert any(name.endswith("lora_B.default.weight") and tensor.any() for name, tensor in policy.named_parameters())
    return policy


@pytest.mark.parametrize("method", ALL)
def test_a_path_is_loaded_and_no_config_is_the_default(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    model = bandit_model()
    model.save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    trainer = METHODS[method][0]("tiny", bounded(), train_dataset=prompts(64))
    assert type(trainer.args) is {"grpo": RolloutConfig, "ppo": PPOConfig, "spo": SPOConfig}[method]
    assert trainer.args.output_dir == f"tiny-{method.upper()}"
    assert trainer.processing_class.get_vocab() == tiny_tokenizer().get_vocab()
    policy = {name: tensor for name, tensor in weights(trainer).items() if not name.startswith("critic.")}
    assert equal(policy, model.state_dict())


def test_a_model_in_memory_names_the_default_config_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = bandit_model()
    model.config._name_or_path = "runs/words"
    trainer = METHODS["grpo"][0](model, bounded(), train_dataset=prompts(64), processing_class=tiny_tokenizer())
    assert trainer.args.output_dir == "words-GRPO"


def test_a_path_is_loaded_with_the_model_init_kwargs(tmp_path):
    bandit_model().save_pretrained(tmp_path / "tiny")
    trainer = online("grpo", tmp_path, model=str(tmp_path / "tiny"), model_init_kwargs={"dtype": torch.bfloat16})
    assert trainer.model.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ALL)
def test_the_reference_of_a_peft_model_is_its_adapter_at_the_start(tmp_path, method):
    beta = {"kl_coef": 0.1} if method == "ppo" else {"beta": 0.1}
    options = beta | {"learning_rate": 3e-2, "save_strategy": "steps", "save_steps": 2}
    trainer = online(method, tmp_path, model=trained_adapter(), reward=bounded(), **options)
    frozen = {name: tensor.clone() for name, tensor in weights(trainer).items() if ".ref." in name}
    assert frozen and all(
        torch.equal(frozen[name], weights(trainer)[name.replace(".ref.", ".default.")]) for name in frozen
    )
    assert trainer.evaluate()["eval_kl"] == pytest.approx(0, abs=1e-6), "not 0 with the model without its adapter"
    trainer.train()
    after = weights(trainer)
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert any(not torch.equal(after[name.replace(".ref.", ".default.")], tensor) for name, tensor in frozen.items())
    assert trainer.evaluate()["eval_kl"] > 1e-4

    again = online(method, tmp_path, model=trained_adapter(), reward=bounded(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert equal(weights(again), after)


def test_a_peft_model_without_a_reference_gets_no_second_adapter(tmp_path):
    trainer = online("grpo", tmp_path, model=trained_adapter(), beta=0.0)
    assert list(trainer.model.peft_config) == ["default"]


def test_an_adapter_and_another_reference_are_refused(tmp_path):
    with pytest.raises(InputError, match="an adapter brings its reference: leave ref_model out"):
        online("grpo", tmp_path, model=trained_adapter(), beta=0.1, ref_model=bandit_model())
    with pytest.raises(InputError, match="--sync_ref_model has no reference model to move: an adapter brings its own"):
        online("grpo", tmp_path, model=trained_adapter(), beta=0.1, sync_ref_model=True)


def test_ppo_may_answer_a_prompt_several_times(tmp_path):
    trainer = online("ppo", tmp_path, reward=bounded(), num_generations=4, rows=prompts(4), max_steps=2)
    asked, generate = [], trainer.generate_rollout
    trainer.generate_rollout = lambda rows: (
        asked.append([row["prompt"][0]["content"] for row in rows]) or generate(rows)
    )
    trainer.train()
    assert len(asked[0]) == 16 and all(asked[0].count(prompt) == 4 for prompt in asked[0])
    assert not any("frac_reward_zero_std" in log for log in trainer.state.log_history), "PPO has no groups"
