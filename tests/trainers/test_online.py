"""What GRPO, PPO and SPO share: they learn, evaluation changes nothing, and a resume is exact."""

import contextlib
import copy
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from minimind_trl.errors import InputError
from minimind_trl.models.decoding import sample
from minimind_trl.trainers import PPOConfig, RolloutConfig, SPOConfig, rollout_engine
from minimind_trl.trainers.stored_answers import pack_answers
from tests.conftest import REPOSITORY
from tests.forking import accelerate_environment, run
from tests.trainers.online import METHODS, bandit_model, bounded, equal, low_ids, moved, online, prompts, weights

ALL = list(METHODS)
METRICS = {
    "grpo": ("policy_loss", "reward", "frac_reward_zero_std"),
    "ppo": (
        *("actor_loss", "critic_loss", "reward", "kl", "approx_kl", "clip_fraction", "avg_response_len"),
        *("actor_lr", "critic_lr", "actor_grad_norm", "critic_grad_norm", "explained_variance"),
    ),
    "spo": ("policy_loss", "reward", "rho", "baseline", "baseline_brier", "advantage_mean", "effective_prompts"),
}


def test_a_method_may_replace_advantages_and_add_tensors_for_its_loss(tmp_path):
    trainer, rollouts, losses = online("grpo", tmp_path), [], []

    def training_batch(rows):
        rollouts.append(trainer.collect_rollout(rows, with_logps=True))
        mask = rollouts[-1].mask
        return trainer.batch_of(rollouts[-1], torch.zeros_like(mask, dtype=torch.float), mark=torch.arange(len(mask)))

    def minibatch_loss(model, inputs):
        losses.append((inputs["advantages"].shape, inputs["mark"]))
        return trainer.policy_loss(model, inputs, beta=0.0)[0]

    trainer.training_batch, trainer.minibatch_loss = training_batch, minibatch_loss
    before = weights(trainer)
    trainer.train()
    assert losses[0][0] == rollouts[0].mask.shape and sorted(losses[0][1].tolist()) == list(range(16))
    assert list(trainer._logs["advantages"]) == [0.0] * 16, "the table of completions shows them"
    assert equal(before, weights(trainer)), "advantages of 0 change no weight"


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
        assert after["eval_value_loss"] < before["eval_value_loss"] and "eval_explained_variance" in before


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


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[] if method == "grpo" else pytest.mark.slow) for method in METHODS]
)
def test_transformers_continuous_batching_answers_for_our_engine(tmp_path, method, monkeypatch):
    options = {"use_transformers_continuous_batching": True, "max_completion_length": 8, "max_steps": 1}
    memory = {"transformers_continuous_batching_config": {"num_blocks": 16, "max_batch_tokens": 256}}
    trainer = online(method, tmp_path, reward=bounded(), bf16=True, **options | memory)
    asked = []
    engine = type(trainer.model).generate_batch
    monkeypatch.setattr(
        type(trainer.model), "generate_batch", lambda *args, **kwargs: asked.append(1) or engine(*args, **kwargs)
    )
    before = weights(trainer)
    trainer.train()
    assert asked and not equal(weights(trainer), before)
    assert {tensor.dtype for tensor in weights(trainer).values()} == {torch.float32}
    prompt_ids = [list(range(20, 30)), list(range(40, 70))]
    with trainer.sampling_at(0.0):
        trainer.model.train()
        theirs = trainer.complete(trainer.model, prompt_ids)
        assert trainer.model.training
        trainer.use_transformers_continuous_batching = False
        monkeypatch.setattr(trainer.accelerator, "native_amp", False)  # theirs computes in the type of the weights
        assert trainer.complete(trainer.model, prompt_ids) == theirs


@pytest.mark.parametrize("bf16", [False, True])
def test_answers_are_computed_in_the_type_of_updates(tmp_path, monkeypatch, bf16):
    trainer, seen = online("grpo", tmp_path, bf16=bf16, max_steps=1), []

    def watched(*args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return sample(*args, **kwargs)

    monkeypatch.setattr(rollout_engine, "sample", watched)
    trainer.train()
    assert set(seen) == {bf16}


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
        assert equal(pack_answers(whole.last_answers), pack_answers(again.last_answers))
    assert whole.num_tokens_generated == again.num_tokens_generated


@pytest.mark.parametrize("method", ALL)
def test_the_gradient_is_that_of_finite_differences(tmp_path, method):
    """Along a random direction, of the whole loss on a fixed rollout with the policy already moved away from it."""
    moving = {"beta": 0.1, "num_iterations": 2}  # else the loss takes the policy for the one that wrote the rollout
    options = {"grpo": moving, "ppo": {"kl_coef": 0.1}, "spo": moving}[method]
    trainer = online(method, tmp_path, reward=bounded(), **options)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = trainer.prepare_inputs(next(iter(trainer.get_train_dataloader())))
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


@pytest.mark.parametrize("method", ALL)
def test_an_entropy_bonus_keeps_the_policy_open(tmp_path, method):
    options = {"max_steps": 12, "learning_rate": 1e-2, "max_completion_length": 2}
    entropies = {}
    for coefficient in (0.0, 1.0):
        trainer = online(method, tmp_path / str(coefficient), reward=bounded(), entropy_coef=coefficient, **options)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "entropy" in log]
        entropies[coefficient] = logs[-1]["entropy"]
        name = "actor_loss" if method == "ppo" else "policy_loss"
        assert abs(logs[0][name]) < 0.5, "the policy's loss is logged without the bonus, which is about 6"
    assert entropies[1.0] > entropies[0.0] + 0.1


def test_a_resume_of_an_adaptive_entropy_bonus_is_exact(tmp_path):
    options = {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_delta": 0.1}
    options |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = online("grpo", tmp_path, **options)
    whole.train()
    again = online("grpo", tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert equal(weights(whole), weights(again)) and whole.entropy_coef == again.entropy_coef == 0.4


@pytest.mark.parametrize("method", ALL)
def test_without_dropout_a_model_learns_as_one_that_has_none(tmp_path, method):
    """Of the attention, and of the critic too."""
    ends = {}
    for dropout, off in ((0.0, False), (0.5, True), (0.5, False)):
        model = bandit_model(attention_dropout=dropout, classifier_dropout=dropout)
        trainer = online(method, tmp_path / f"{dropout}{off}", model=model, disable_dropout=off, max_steps=2)
        trainer.train()
        ends[dropout, off] = weights(trainer)
    assert equal(ends[0.5, True], ends[0.0, False]) and not equal(ends[0.5, False], ends[0.0, False])


@pytest.mark.parametrize("lora", [False, True])
def test_the_kl_of_greedy_answers_is_that_of_the_policy(tmp_path, lora, monkeypatch):
    """Of one-token answers the exact one, though a greedy answer is not drawn from the policy; in parts, too."""
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "gate_proj"], task_type="CAUSAL_LM") if lora else None
    options = {"beta": 1e-6, "max_completion_length": 1, "peft_config": adapter, "temperature": 0.8}
    trainer = online("grpo", tmp_path, **options)
    assert trainer.evaluate()["eval_kl"] == pytest.approx(0, abs=1e-6)
    moved(trainer)
    figures = trainer.evaluate()
    divergences, model = [], trainer.model.eval()
    for row in prompts(6):
        asked = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        ids = trainer.processing_class.apply_chat_template(row["prompt"], **asked)["input_ids"]
        with torch.no_grad():
            policy = (model(input_ids=ids).logits[0, -1] / 0.8).log_softmax(-1)
            with model.disable_adapter() if lora else contextlib.nullcontext():
                other = model if lora else trainer.ref_model
                reference = (other(input_ids=ids).logits[0, -1] / 0.8).log_softmax(-1)
        divergences.append((policy.exp() * (policy - reference)).sum().item())
    assert figures["eval_kl"] == pytest.approx(sum(divergences) / 6, rel=1e-3) and figures["eval_kl"] > 1e-3
    monkeypatch.setattr("minimind_trl.trainers.reference_model.LOGITS_AT_ONCE", 1)
    assert trainer.evaluate()["eval_kl"] == pytest.approx(figures["eval_kl"], rel=1e-5)


def test_prompts_and_answers_are_counted_apart(tmp_path):
    figures = online("grpo", tmp_path, eval_temperature=1.0, num_generations_eval=2).evaluate()
    assert figures["eval_prompts"] == 6 and figures["eval_answers"] == 12


def test_tokens_of_tools_are_not_generated(tmp_path):
    def with_tool(prompts, trainer):
        count = len(prompts)
        ids = {"prompt_ids": [[1, 5, 6]] * count, "completion_ids": [[9, 8, 7, 2]] * count, "logprobs": None}
        return ids | {"env_mask": [[1, 0, 0, 1]] * count}

    trainer = online("ppo", tmp_path, rollout_func=with_tool, max_steps=2)
    trainer.train()
    assert trainer.num_tokens_generated == 16 * 2
    assert [log["avg_response_len"] for log in trainer.state.log_history if "avg_response_len" in log] == [2]


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
        assert equal(first["state"]["answers"], second["state"]["answers"])
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
    names = {name for log in logs for name in log if name.startswith(("win_rate", "opponent"))}
    assert names == {"win_rate", "win_rate/initial", "win_rate/latest", "opponent_age"}, "however many there were"


def test_answers_before_training_set_the_baselines(tmp_path):
    trainer = online("spo", tmp_path, reward=bounded(), init_rollouts=3, max_steps=1)
    trainer.train()
    baselines = trainer.tracker.baselines(torch.arange(24))
    assert baselines.std() > 0.01


def test_the_global_tracker_trains_as_minimind_does(tmp_path):
    trainer = online("spo", tmp_path, reward=bounded(), tracker="global")
    assert trainer.reward_scale.range == (0.0, 1.0) and trainer.beta == 0.02 and trainer.ref_model is not None
    trainer.train()
    assert trainer.tracker.mean_logp is not None


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PPOConfig, {"epsilon": 0.1}, "--epsilon is set by --cliprange"),
        (PPOConfig, {"epsilon_high": 0.1}, "--epsilon_high is set by --cliprange"),
        (PPOConfig, {"loss_type": "cispo", "cliprange": 0.1}, "--cliprange is for --loss_type grpo or bnpo"),
        (SPOConfig, {"loss_type": "cispo", "epsilon_high": 0.28}, "would scale every gradient down: set 5"),
        (RolloutConfig, {"loss_type": "cispo", "epsilon_high": 0.2}, "--epsilon_high 0.2: with --loss_type cispo"),
        (RolloutConfig, {"loss_type": "cispo", "epsilon": 0.1}, "--epsilon is for --loss_type grpo or bnpo"),
        (RolloutConfig, {"vespo_k_pos": 1.0}, "--vespo_k_pos is for --loss_type vespo"),
        (RolloutConfig, {"entropy_target": 1.0}, "--entropy_target is for --use_adaptive_entropy true"),
        (RolloutConfig, {"ref_model_sync_steps": 1}, "--ref_model_sync_steps is for --sync_ref_model true"),
        (SPOConfig, {"shuffle_dataset": False}, "--shuffle_dataset is for --prioritized_sampling false"),
        (PPOConfig, {"num_generations": 0}, "--num_generations 0: must be at least 1"),
        (SPOConfig, {"num_generations": 4}, "--num_generations 4: SPO samples one completion per prompt"),
        (PPOConfig, {"kl_estimator": "k2"}, "--kl_estimator k2: must be one of k1, k3"),
        (PPOConfig, {"lam": 1.5, "num_ppo_epochs": 0}, "--num_ppo_epochs 0: must be at least 1"),
        (PPOConfig, {"sync_ref_model": True}, "--sync_ref_model is not for this method"),
        (SPOConfig, {"scale_rewards": "none"}, "--scale_rewards is not for this method: there are no groups"),
        (SPOConfig, {"opponent": "snapshot", "init_rollouts": 2}, "--init_rollouts is not for self-play"),
        (SPOConfig, {"tracker": "none"}, "--tracker none: must be one of prompt, global"),
        (SPOConfig, {"rho_min": 0.99}, "0 < rho_min <= rho_max < 1"),
        (SPOConfig, {"reward_range": [1, 0]}, "two numbers, the lower one first"),
        (SPOConfig, {"sampling_floor": 0}, "--sampling_floor 0: must be more than 0"),
        (
            RolloutConfig,
            {"use_transformers_continuous_batching": True, "repetition_penalty": 1.1},
            "--repetition_penalty has no effect with --use_transformers_continuous_batching",
        ),
        (RolloutConfig, {"loss_type": "cipso"}, "sapo, luspo, vespo; did you mean 'cispo'?"),
        (
            SPOConfig,
            {"importance_sampling_level": "row"},
            "_level row: must be one of token, sequence",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, config, options, message):
    with pytest.raises(InputError) as error:
        config(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)
    assert message in str(error.value)


def test_rewards_outside_of_the_declared_range_are_an_error(tmp_path):
    def undeclared(prompts, completions, completion_ids, **_):
        return low_ids(prompts, completions, completion_ids)

    trainer = online("spo", tmp_path, reward=undeclared, reward_range=[0.0, 0.1])
    with pytest.raises(InputError, match=r"the reward .* \(undeclared .*\) is outside --reward_range 0 0.1"):
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


@pytest.mark.parametrize("tracker", ["prompt", "global"])
def test_answers_that_are_cut_off_and_masked_leave_the_tracker_whole(tmp_path, tracker):
    options = {"mask_truncated_completions": True, "max_steps": 6, "rows": prompts(16), "tracker": tracker}
    trainer = online("spo", tmp_path, reward=bounded(), **options)
    trainer.train()
    if tracker == "prompt":
        assert trainer.tracker.baselines(torch.arange(16)).isfinite().all()
    else:
        assert trainer.tracker.mean_logp is None, "of no token there is no mean"


@pytest.mark.parametrize("method", ALL)
def test_with_all_answers_masked_figures_are_those_of_the_answers_or_none(tmp_path, method):
    options = {"max_steps": 2, "kl_coef": 0.1} if method == "ppo" else {"max_steps": 2, "beta": 0.1}
    trainer = online(method, tmp_path, reward=bounded(), mask_truncated_completions=True, **options)
    assert all(answer["completion"] for answer in trainer.answer(list(prompts(4))))
    figures = trainer.evaluate()
    assert figures["eval_completion_length"] == 3 and figures["eval_eos_rate"] == 0
    assert figures["eval_entropy"] > 1 and figures["eval_kl"] == pytest.approx(0, abs=1e-6)
    trainer.train()
    assert trainer.num_tokens_generated == (2 if method != "ppo" else 1) * 16 * 3
    logs = [log for log in trainer.state.log_history if "loss" in log]
    of_tokens = {"entropy", "kl", "kl_ref", "approx_kl", "clip_fraction", "critic_loss", "actor_loss", "policy_loss"}
    assert not [name for log in logs for name in log if name in of_tokens or name.startswith("clip_ratio")]
    assert all(value is not None and math.isfinite(value) for log in logs for value in log.values())
    if method == "ppo":
        assert logs[0]["avg_response_len"] == 3


def test_fewer_prompts_than_a_rollout_answers_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"answers 16 prompts, and there are 9, .* --per_device_train_batch_size 9"):
        online("spo", tmp_path, reward=bounded(), rows=prompts(9))


def test_a_prompt_may_bring_arguments_of_the_template_and_rewards_see_what_the_model_reads(tmp_path):
    seen = {}

    def watching(prompts, completions, completion_ids, rendered_prompts, **_):
        seen.update({prompt[-1]["content"]: text for prompt, text in zip(prompts, rendered_prompts, strict=True)})
        return low_ids(prompts, completions, completion_ids)

    rows = prompts(16).to_list()
    rows = [row | {"chat_template_kwargs": {"open_thinking": n % 2 == 0}} for n, row in enumerate(rows)]
    trainer = online("grpo", tmp_path, reward=watching, rows=Dataset.from_list(rows))
    asked, generate = [], trainer.generate_completions

    def listening(prompt_ids):
        asked.extend(trainer.processing_class.batch_decode(prompt_ids))
        return generate(prompt_ids)

    trainer.generate_completions = listening
    trainer.answer(rows)
    assert set(seen.values()) == set(asked) and len(asked) == 16
    for number in range(16):
        end = "<think>\n" if number % 2 == 0 else "<think>\n\n</think>\n\n"
        assert seen[f"say {number}"].endswith(f"assistant\n{end}")
