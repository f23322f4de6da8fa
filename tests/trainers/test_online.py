"""What GRPO, PPO and SPO share: they learn, evaluation changes nothing, and a resume is exact."""

import copy
import itertools
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from minimind_trl.errors import InputError
from minimind_trl.models import MiniMindForSequenceClassification, MiniMindForTokenClassification
from minimind_trl.rewards import Reward
from minimind_trl.trainers import PPOConfig, RLDoctor, RolloutConfig, SPOConfig
from minimind_trl.trainers.rollout_trainer import broken_contract
from tests.conftest import REPOSITORY
from tests.forking import accelerate_environment, run
from tests.trainers.online import METHODS, bandit_model, low_ids, online, prompts, weights

ALL = list(METHODS)
METRICS = {
    "grpo": ("policy_loss", "reward", "frac_reward_zero_std"),
    "ppo": (
        *("actor_loss", "critic_loss", "reward", "kl", "approx_kl", "kl_ref", "clip_fraction", "avg_response_len"),
        *("actor_lr", "critic_lr", "actor_grad_norm", "critic_grad_norm", "explained_variance"),
    ),
    "spo": ("policy_loss", "reward", "rho", "baseline", "baseline_brier", "advantage_mean", "effective_prompts"),
}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def bounded(function=low_ids) -> Reward:
    return Reward(function, function.__name__, 0.0, 1.0)


def test_trl_still_is_what_the_rollout_trainer_leans_on(tmp_path):
    trainer = online("grpo", tmp_path)
    broken = broken_contract(trainer)
    assert not broken, "TRL's GRPOTrainer has changed; adapt trainers/rollout_trainer.py:\n" + "\n".join(broken)
    seen = {}

    def per_token(rollout):
        seen["rollout"] = rollout
        rollout.extra["mark"] = torch.arange(len(rollout.rows))
        return torch.zeros_like(rollout.mask, dtype=torch.float)

    trainer.advantages = per_token
    losses = []
    trainer.extra_loss = lambda model, inputs: losses.append((inputs["advantages"].shape, inputs["mark"])) or None
    before = weights(trainer)
    trainer.train()
    assert losses[0][0] == seen["rollout"].mask.shape and sorted(losses[0][1].tolist()) == list(range(16))
    assert list(trainer._logs["advantages"]) == [0.0] * 16
    assert equal(before, weights(trainer)), "advantages of 0 move nothing"


@pytest.mark.parametrize("method", ALL)
def test_a_bandit_is_solved(tmp_path, method):
    """Half of what a random policy says is rewarded; the best policy says nothing else."""
    options = {"max_steps": 60, "per_device_train_batch_size": 64, "max_completion_length": 2, "learning_rate": 1e-2}
    options |= {"rows": prompts(64), "held_out": prompts(64), "per_device_eval_batch_size": 64, "eval_temperature": 1.0}
    trainer = online(method, tmp_path, reward=bounded(), **options)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_reward"] < 0.75 and before["eval_policy_loss"] == pytest.approx(0, abs=1e-5)
    assert after["eval_reward"] > 0.95
    assert after["eval_policy_loss"] == after["eval_loss"] != before["eval_loss"]
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for name in METRICS[method]:
        values = [log[name] for log in logs if name in log]  # some come with a rollout
        assert values and all(map(math.isfinite, values)), name
    assert logs[-1]["num_tokens_generated"] > logs[0]["num_tokens_generated"] > 0
    rewards = [log["reward"] for log in logs if "reward" in log]
    assert rewards[-1] > rewards[0]
    if method == "ppo":
        assert after["eval_value_loss"] < before["eval_value_loss"] and "eval_explained_variance" in after


@pytest.mark.parametrize("method", ALL)
def test_evaluation_changes_no_weight(tmp_path, method):
    ends = []
    for name, steps in (("never", None), ("every", 1), ("seldom", 3)):
        options = {} if steps is None else {"eval_strategy": "steps", "eval_steps": steps}
        trainer = online(method, tmp_path / name, reward=bounded(), **options)
        if steps is not None:
            trainer.evaluate()
        trainer.train()
        ends.append(weights(trainer))
    assert equal(ends[0], ends[1]) and equal(ends[0], ends[2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_weights_get_the_same_figures(tmp_path, temperature):
    trainer = online("grpo", tmp_path, eval_temperature=temperature)
    assert trainer.evaluate() == trainer.evaluate()


def test_several_evaluation_sets_have_their_names_in_the_keys(tmp_path):
    trainer = online("grpo", tmp_path)
    figures = trainer.evaluate({"easy": prompts(3), "hard": prompts(5)})
    assert figures["eval_easy_prompts"] == 3 and figures["eval_hard_prompts"] == 5
    assert {"eval_easy_reward", "eval_hard_rewards/low_ids", "eval_hard_policy_loss"} <= figures.keys()


@pytest.mark.parametrize("method", [*ALL, "self-play"])
@pytest.mark.parametrize("stopped", [2, 3])
def test_a_resume_is_exact_within_a_rollout_too(tmp_path, method, stopped):
    """Each rollout is trained on in two steps or more, so that one of the stops is between them."""
    method, more = ("spo", {"opponent": "snapshot", "opponent_interval": 2}) if method == "self-play" else (method, {})
    more |= {"num_mini_batches": 2} if method == "ppo" else {"steps_per_generation": 2}
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": stopped, "beta": 0.1, "rows": prompts(64)} | more
    if method == "ppo":
        options = options | {"kl_coef": options.pop("beta")}
    whole = online(method, tmp_path / "whole", reward=bounded(), **options)
    whole.train()
    again = online(method, tmp_path / "whole", reward=bounded(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stopped}"))
    assert whole.state.global_step == 6 and equal(weights(whole), weights(again))
    for mine, theirs in zip(whole.optimizer.state.values(), again.optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])
    if method == "spo":
        numbers = torch.arange(64)
        assert torch.equal(whole.tracker.baselines(numbers), again.tracker.baselines(numbers))
        assert whole._answers == again._answers
    assert whole.num_tokens_generated == again.num_tokens_generated


@pytest.mark.parametrize("method", ALL)
def test_the_gradient_is_that_of_finite_differences(tmp_path, method):
    """Along a random direction, of the whole loss on a fixed rollout with the policy already moved away from it."""
    options = {"grpo": {"beta": 0.1, "num_iterations": 2}, "ppo": {"kl_coef": 0.1}, "spo": {"beta": 0.1}}[method]
    trainer = online(method, tmp_path, reward=bounded(), **options)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    torch.manual_seed(1)
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data += 0.02 * torch.randn_like(parameter) * parameter.std(correction=0)
    direction = [torch.randn_like(parameter) * 0.05 for parameter in parameters]

    def loss(shift: float) -> torch.Tensor:
        moved = copy.deepcopy([parameter.data for parameter in parameters])
        for parameter, way in zip(parameters, direction, strict=True):
            parameter.data += shift * way
        value = trainer.compute_loss(trainer.model, inputs)
        for parameter, data in zip(parameters, moved, strict=True):
            parameter.data.copy_(data)
        return value

    loss(0.0).backward()
    slope = sum((parameter.grad * way).sum() for parameter, way in zip(parameters, direction, strict=True)).item()
    step = 2e-2
    measured = (loss(step) - loss(-step)).item() / (2 * step)
    assert slope == pytest.approx(measured, rel=0.03, abs=1e-4) and abs(slope) > 1e-4


def fed(method: str, folder: Path, processes: int, engine: str | None = None) -> list[dict]:
    """What fed.py's processes report."""
    folder.mkdir()
    environment = {"DS_ACCELERATOR": "cpu"}
    if engine:
        environment |= accelerate_environment(REPOSITORY / f"accelerate_configs/cpu/{engine}.yaml")
    done = run("tests/trainers/fed.py", [method, folder], processes=processes, environment=environment)
    assert done.returncode == 0, done.stderr
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank-*.pt"))]


def learned_the_same(mine: dict, theirs: dict) -> None:
    for name in ("losses", "norms"):
        assert mine[name] == pytest.approx(theirs[name], abs=1e-4, rel=1e-4), name
    for figures, expected in zip(mine["figures"], theirs["figures"], strict=True):
        assert figures == pytest.approx(expected, abs=1e-4)
    for name, tensor in theirs["weights"].items():
        torch.testing.assert_close(mine["weights"][name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_two_processes_learn_what_one_does(tmp_path, method):
    """Fed the same answers: equal weights and trackers in both, losses and gradients as in one, the same figures."""
    [one] = fed(method, tmp_path / "one", 1)
    first, second = fed(method, tmp_path / "two", 2)
    assert first["world"] == 2 and first["wrapper"] == "DistributedDataParallel"
    assert equal(first["weights"], second["weights"])
    assert first["figures"] == second["figures"]
    learned_the_same(first, one)
    if method == "spo":
        assert first["state"]["answers"] == second["state"]["answers"]
        for name, tensor in first["state"]["tracker"].items():
            assert torch.equal(tensor, second["state"]["tracker"][name])
            torch.testing.assert_close(tensor, one["state"]["tracker"][name], atol=1e-4, rtol=1e-4)
        assert torch.equal(first["state"]["draws"], second["state"]["draws"])
    if shutil.which("g++") is None:
        pytest.skip("DDP is fine; for ZeRO-3 DeepSpeed builds a library with g++, which is not here")
    sharded, _ = fed(method, tmp_path / "zero3", 2, "zero3")
    assert sharded["world"] == 2 and sharded["wrapper"] == "DeepSpeedEngine"
    learned_the_same(sharded, one)


@pytest.mark.parametrize("method", ALL)
def test_lora_trains_its_adapter_alone(tmp_path, method):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    options = {"kl_coef": 0.1} if method == "ppo" else {"beta": 0.1}
    trainer = online(method, tmp_path, reward=bounded(), peft_config=lora, **options)
    before = weights(trainer)
    trainer.train()
    trainer.save_model()
    moved = {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])}
    assert any("lora_" in name for name in moved)
    assert all("lora_" in name or ".critic." in name for name in moved)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "critic").is_dir() == (method == "ppo")


def test_the_critic_is_saved_beside_the_policy_and_loads(tmp_path):
    trainer = online("ppo", tmp_path / "run")
    trainer.train()
    trainer.save_model()
    critic = MiniMindForTokenClassification.from_pretrained(tmp_path / "run" / "critic")
    assert equal(critic.state_dict(), trainer.critic.state_dict())
    model = bandit_model().from_pretrained(tmp_path / "run")
    assert not [name for name in model.state_dict() if "critic" in name]
    policy = {name: tensor for name, tensor in weights(trainer).items() if not name.startswith("critic.")}
    assert equal(model.state_dict(), policy)
    again = online("ppo", tmp_path / "again", model=model, critic_model=str(tmp_path / "run" / "critic"))
    assert equal(again.critic.state_dict(), trainer.critic.state_dict())


def test_the_critic_starts_from_a_reward_model(tmp_path):
    config = bandit_model().config
    config.num_labels = 1
    judge = MiniMindForSequenceClassification(config)
    judge.save_pretrained(tmp_path / "judge")
    critic = online("ppo", tmp_path / "run", critic_model=str(tmp_path / "judge")).critic
    assert equal(critic.model.state_dict(), judge.model.state_dict())
    assert torch.equal(critic.score.weight, judge.score.weight)


def test_a_critic_of_other_tokens_or_without_values_is_refused(tmp_path):
    bandit_model().save_pretrained(tmp_path / "words")
    with pytest.raises(InputError, match="is a MiniMindForCausalLM; give a reward model"):
        online("ppo", tmp_path / "run", critic_model=str(tmp_path / "words"))


def test_the_critic_has_its_own_learning_rate(tmp_path):
    trainer = online("ppo", tmp_path, learning_rate=1e-4, critic_learning_rate=1e-2)
    trainer.create_optimizer()
    critic = {id(parameter) for parameter in trainer.critic.parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == (1e-2 if id(parameter) in critic else 1e-4)
    counted = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert counted == len(list(trainer.model.parameters()))


def test_far_from_its_rollout_the_policy_takes_no_more_steps(tmp_path):
    options = {"num_ppo_epochs": 4, "learning_rate": 3e-2, "max_steps": 4}
    free = online("ppo", tmp_path / "free", **options)
    free.train()
    held = online("ppo", tmp_path / "held", **options, target_kl=1e-4)
    held.train()
    skipped = [log["skipped_steps"] for log in held.state.log_history if "skipped_steps" in log]
    assert skipped[0] == 0 and sum(skipped) >= 2
    shifts = [[log["approx_kl"] for log in t.state.log_history if "approx_kl" in log][-1] for t in (held, free)]
    assert shifts[0] < shifts[1]


def test_a_completion_that_does_not_end_pays(tmp_path):
    trainer = online("ppo", tmp_path, missing_eos_penalty=1.0)
    trainer.model.train()
    rewards = []
    token_rewards = trainer._token_rewards
    trainer._token_rewards = lambda rollout: rewards.append((rollout, token_rewards(rollout))) or rewards[-1][1]
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    rollout, given = rewards[0]
    expected = rollout.rewards - (~rollout.ended).float()
    torch.testing.assert_close(given.sum(1), expected)
    last = rollout.mask.sum(1) - 1
    torch.testing.assert_close(given.gather(1, last[:, None])[:, 0], expected)


def test_self_play_beats_the_policy_it_started_from(tmp_path):
    options = {
        "opponent": "snapshot",
        "opponent_interval": 10,
        "opponent_pool": 3,
        "max_steps": 40,
        "learning_rate": 1e-2,
    }
    options |= {"per_device_train_batch_size": 64, "eval_temperature": 1.0, "held_out": prompts(64)}
    trainer = online("spo", tmp_path, reward=bounded(), rows=prompts(64), **options)
    assert trainer.evaluate()["eval_win_rate"] == pytest.approx(0.5, abs=0.35)
    trainer.train()
    assert trainer.evaluate()["eval_win_rate"] > 0.8
    assert [step for step, _ in trainer.opponents.snapshots] == [0, 30, 40]
    logs = [log for log in trainer.state.log_history if "win_rate" in log]
    assert logs and any("win_rate/initial" in log for log in logs)


def test_answers_before_training_set_the_baselines(tmp_path):
    trainer = online("spo", tmp_path, reward=bounded(), init_rollouts=3, max_steps=1)
    trainer.train()
    baselines = trainer.tracker.baselines(torch.arange(24))
    assert baselines.std() > 0.01


def test_the_global_tracker_trains_as_minimind_does(tmp_path):
    trainer = online("spo", tmp_path, reward=bounded(), tracker="global")
    assert trainer.reward_range == (-3.0, 3.0) and trainer.beta == 0.02 and trainer.ref_model is not None
    trainer.train()
    assert trainer.tracker.mean_logp is not None


OPTIONS = {
    "grpo": [{"loss_type": "cispo"}, {"scale_rewards": "none"}, {"beta": 0.5}],
    "ppo": [
        *({"whiten_rewards": True}, {"whiten_advantages": False}, {"gamma": 0.5}, {"lam": 0.1}),
        *({"cliprange": 1e-3}, {"cliprange_value": 1e-3}, {"vf_coef": 5.0}, {"missing_eos_penalty": 1.0}),
        *({"kl_coef": 0.2}, {"kl_coef": 0.2, "kl_estimator": "k3"}, {"num_mini_batches": 2}, {"num_ppo_epochs": 3}),
    ],
    "spo": [
        *({"prioritized_sampling": False}, {"sampling_floor": 5.0}, {"rho_half_life": 1e-3}, {"init_rollouts": 2}),
        *({"rho_min": 0.5, "rho_max": 0.6}, {"tracker": "global"}, {"beta": 0.5}, {"opponent": "snapshot"}),
    ],
}


@pytest.mark.parametrize("method", OPTIONS)
def test_every_option_changes_what_is_learned(tmp_path, method):
    # few prompts, so that they come back, and several minibatches, so that what is clipped has moved
    shared = {"rows": prompts(16), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 16}
    learned = {}
    for number, options in enumerate([{}, *OPTIONS[method]]):
        trainer = online(method, tmp_path / str(number), **(shared | options))
        trainer.train()
        learned[str(options)] = torch.cat([tensor.flatten() for tensor in weights(trainer).values()])
    same = [pair for pair in itertools.combinations(learned, 2) if torch.equal(learned[pair[0]], learned[pair[1]])]
    assert not same


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PPOConfig, {"epsilon": 0.1}, "--epsilon is set by --cliprange"),
        (PPOConfig, {"num_generations": 4}, "samples one completion per prompt"),
        (PPOConfig, {"kl_estimator": "k2"}, "--kl_estimator 'k2': k1 or k3"),
        (PPOConfig, {"lam": 1.5, "num_ppo_epochs": 0}, "--num_ppo_epochs 0: at least 1"),
        (PPOConfig, {"sync_ref_model": True}, "--sync_ref_model is not for this method"),
        (SPOConfig, {"scale_rewards": "none"}, "--scale_rewards is not for this method: there are no groups"),
        (SPOConfig, {"opponent": "snapshot", "init_rollouts": 2}, "--init_rollouts is not for self-play"),
        (SPOConfig, {"tracker": "none"}, "--tracker 'none': prompt or global"),
        (SPOConfig, {"rho_min": 0.99}, "0 < rho_min <= rho_max < 1"),
        (SPOConfig, {"reward_range": [1, 0]}, "two numbers, the lower one first"),
        (SPOConfig, {"sampling_floor": 0}, "--sampling_floor 0: more than 0"),
        (RolloutConfig, {"loss_type": "cipso"}, "--loss_type 'cipso' is not known; did you mean 'cispo'?"),
        (SPOConfig, {"importance_sampling_level": "row"}, "is not known; known: token, sequence"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, config, options, message):
    with pytest.raises(InputError) as error:
        config(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)
    assert message in str(error.value)


def test_rewards_outside_of_the_declared_range_are_an_error(tmp_path):
    trainer = online("spo", tmp_path, reward_range=[0.0, 0.1])
    with pytest.raises(InputError, match=r"the reward .* \(low_ids .*\) is outside --reward_range 0 0.1"):
        trainer.train()


def test_a_reference_that_is_not_there_cannot_follow_the_policy(tmp_path):
    with pytest.raises(InputError, match="--sync_ref_model has no reference model to move: beta is 0"):
        online("grpo", tmp_path, sync_ref_model=True)


def test_a_reference_follows_the_policy_and_is_kept(tmp_path):
    options = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    options |= {"save_strategy": "steps", "save_steps": 3}
    trainer = online("grpo", tmp_path, **options)
    trainer.train()
    assert equal(trainer.ref_model.state_dict(), trainer.model.state_dict())
    again = online("grpo", tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert equal(weights(trainer), weights(again))


def test_answers_that_are_cut_off_and_masked_leave_the_tracker_whole(tmp_path):
    options = {"mask_truncated_completions": True, "max_steps": 6, "rows": prompts(16)}
    trainer = online("spo", tmp_path, reward=bounded(), **options)
    trainer.train()
    assert trainer.tracker.baselines(torch.arange(16)).isfinite().all()


def test_fewer_prompts_than_a_rollout_answers_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"answers 16 prompts, and there are 9, .* --per_device_train_batch_size 9"):
        online("spo", tmp_path, reward=bounded(), rows=prompts(9))


def test_a_range_that_nobody_declared_is_asked_for(tmp_path):
    def lengths(prompts, completions, completion_ids, **_):
        return [float(len(ids)) for ids in completion_ids]

    with pytest.raises(InputError, match="the range of reward lengths is not known: give --reward_range"):
        online("spo", tmp_path, reward=lengths)


def test_a_completion_without_any_reward_is_an_error(tmp_path):
    def none(prompts, completions, **_):
        return [None] * len(prompts)

    with pytest.raises(InputError, match="16 of 16 completions have no reward: none returned None"):
        online("grpo", tmp_path, reward=none).train()


@pytest.mark.parametrize(
    ("logs", "sentence"),
    [
        ([{"frac_reward_zero_std": 0.62}], "62% of the groups have equal rewards"),
        ([{"completions/clipped_ratio": 0.5}], "50% of the completions are cut off at 256 tokens"),
        ([{"completions/mean_length": 20.0}] * 3 + [{"completions/mean_length": 4.0}], "completions have 4.0 tokens"),
        (
            [{"completions/mean_length": 20.0}] * 3 + [{"completions/mean_length": 60.0, "reward": 2.0}],
            "it may pay for length",
        ),
        ([{"entropy": 2.0}] * 3 + [{"entropy": 0.1}], "the policy hardly tries anything new"),
        ([{"kl_ref": 3.0}], "3.00 nats per token from its reference"),
        ([{"explained_variance": -0.2}] * 6, "the critic explains nothing"),
    ],
)
def test_the_doctor_says_what_is_wrong_once(logs, sentence, capsys, tmp_path):
    doctor, trainer = RLDoctor(), online("grpo", tmp_path, max_completion_length=256)
    for log in [*logs, logs[-1]]:
        doctor.on_log(trainer.args, trainer.state, trainer.control, logs={"loss": 0.0, "reward": 1.0, **log})
    said = capsys.readouterr().out
    assert said.count(sentence) == 1 and said.count("doctor,") == 1


def test_the_doctor_is_silent_where_nothing_is_wrong(capsys, tmp_path):
    doctor, trainer = RLDoctor(), online("grpo", tmp_path)
    fine = {"loss": 0.0, "reward": 1.0, "entropy": 1.0, "kl": 0.01, "completions/mean_length": 9.0}
    for _ in range(9):
        doctor.on_log(trainer.args, trainer.state, trainer.control, logs=dict(fine))
    assert capsys.readouterr().out == "" and not doctor.said
