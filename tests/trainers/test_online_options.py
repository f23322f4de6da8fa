"""Every option of GRPO, PPO and SPO changes what is learned, is refused, or stands under a reason why it does not.

A new field of a config fails the first test until it is in one of the three lists.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minimind_trl.errors import InputError
from minimind_trl.models import MiniMindForSequenceClassification
from minimind_trl.rewards import Reward
from minimind_trl.run.online_configs import GRPORecipeConfig, PPORecipeConfig, SPORecipeConfig
from minimind_trl.trainers import PPOConfig, RolloutConfig, SPOConfig
from tests.trainers.online import METHODS, bandit_model, low_ids, online, prompts, weights

RECIPES = {"grpo": GRPORecipeConfig, "ppo": PPORecipeConfig, "spo": SPORecipeConfig}
CONFIGS = {"grpo": RolloutConfig, "ppo": PPOConfig, "spo": SPOConfig}
BASE = {"rows": prompts(16), "per_device_train_batch_size": 8, "max_steps": 2}
# Three steps on one rollout, so that what is clipped has moved.
AGAIN = {
    "grpo": {"num_iterations": 3, "max_steps": 3, "learning_rate": 1e-2},
    "ppo": {"num_ppo_epochs": 3, "max_steps": 3},
    "spo": {"num_iterations": 3, "max_steps": 3, "learning_rate": 1e-2},
}
ADAPTIVE = {"use_adaptive_entropy": True, "entropy_target": 10.0, "max_steps": 4}  # above what there is: always on
REFERENCE = {"beta": 0.5}
SYNCED = {"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1}
OFTEN = {"rows": prompts(8), "max_steps": 4}  # so that all prompts come back


def ends_low(prompts, completions, completion_ids, **_) -> list[float]:
    return [float(ids[-1] < 278) for ids in completion_ids]


def mean_id(prompts, completions, completion_ids, **_) -> list[float]:
    return [sum(ids) / len(ids) / 556 for ids in completion_ids]


def bounded(*functions: Callable) -> list[Reward]:
    return [Reward(function, function.__name__, 0.0, 1.0) for function in functions or (low_ids,)]


TWO = {"reward": bounded(low_ids, ends_low)}
# Many games with rewards of which hardly two are equal, so that it matters who plays.
PLAY = {"opponent": "snapshot", "max_steps": 5, "learning_rate": 3e-2, "reward": bounded(mean_id)}
PLAY |= {"rows": prompts(32), "per_device_train_batch_size": 32}
ADAM = {"adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 1e-2}


def shared(method: str) -> dict[str, Any]:
    """Of all methods: `field: what is set`, or with the options that it is set beside."""
    again = AGAIN[method]
    sapo, vespo = again | {"loss_type": "sapo"}, again | {"loss_type": "vespo"}
    # The entropy falls below its target at the second step: before, the coefficient shrinks, and after, it acts.
    target = 6.12 if method == "ppo" else 6.14
    crossing = again | ADAPTIVE | {"entropy_target": target, "learning_rate": 3e-2}
    crossing |= {"entropy_coef": 1.0, "entropy_coef_delta": 0.5, "entropy_coef_max": 5.0}
    undrawn = {"prioritized_sampling": False} if method == "spo" else {}
    return {
        **ADAM,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "lr_scheduler_kwargs": ({"num_cycles": 2}, {"lr_scheduler_type": "cosine_with_restarts", "max_steps": 3}),
        "warmup_steps": (2, {"lr_scheduler_type": "constant_with_warmup"}),
        "optim": "sgd",
        "weight_decay": 0.1,
        "max_grad_norm": 1e-3,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "num_train_epochs": (2, {"rows": prompts(8), "max_steps": -1, "num_train_epochs": 1}),
        "max_steps": 3,
        "seed": 1,
        "bf16": True,
        "neftune_noise_alpha": 5.0,
        "disable_dropout": (True, {"model": lambda: bandit_model(attention_dropout=0.5)}),
        "router_aux_loss_coef": (9.0, {"model": lambda: bandit_model(num_experts=4)}),
        "cast_lm_head_to_fp32": (True, {"bf16": True}),
        "shuffle_dataset": (False, undrawn),
        "max_completion_length": 2,
        "temperature": 0.7,
        "top_p": 0.5,
        "top_k": 5,
        "min_p": 0.5,
        "repetition_penalty": 5.0,
        "generation_kwargs": {"suppress_tokens": list(range(100, 300))},
        "chat_template_kwargs": {"open_thinking": True},
        "reward_weights": ([1.0, 0.0], TWO),
        "loss_type": ("sapo", again),
        "delta": (1.0, again),
        "importance_sampling_level": ("sequence", again),
        "sapo_temperature_pos": (3.0, sapo),
        "sapo_temperature_neg": (3.0, sapo),
        "vespo_k_pos": (5.0, vespo),
        "vespo_lambda_pos": (5.0, vespo),
        "vespo_k_neg": (5.0, vespo),
        "vespo_lambda_neg": (5.0, vespo),
        "mask_truncated_completions": True,
        "off_policy_mask_threshold": (1e-9, again),
        "top_entropy_quantile": 0.5,
        "entropy_coef": 0.5,
        "use_adaptive_entropy": ADAPTIVE,
        "entropy_target": (10.0, {"use_adaptive_entropy": True, "max_steps": 4}),
        "entropy_coef_delta": (0.5, ADAPTIVE),
        "entropy_coef_max": (0.5, ADAPTIVE | {"entropy_coef_delta": 1.0}),
        "entropy_coef_min": (0.9, crossing),
    }


KL_IN_LOSS = {
    "beta": 0.5,
    "use_bias_correction_kl": (False, REFERENCE),
    "sync_ref_model": ({"sync_ref_model": True, "ref_model_sync_steps": 1}, REFERENCE),
    "ref_model_sync_steps": (2, SYNCED | {"max_steps": 3}),
    "ref_model_mixup_alpha": (0.1, SYNCED),
}
CHANGES = {
    "grpo": {
        **shared("grpo"),
        **KL_IN_LOSS,
        "epsilon": (1e-3, AGAIN["grpo"]),
        "epsilon_high": (1e-3, AGAIN["grpo"]),
        "num_iterations": 2,
        "num_generations": 2,
        "generation_batch_size": 16,
        "steps_per_generation": 2,
        "scale_rewards": "none",
        "multi_objective_aggregation": ("normalize_then_sum", TWO),
    },
    "ppo": {
        **shared("ppo"),
        "epsilon_high": (1.0, AGAIN["ppo"] | {"loss_type": "cispo"}),
        "num_generations": 2,
        "num_ppo_epochs": 1,
        "num_mini_batches": 2,
        "kl_coef": (0.2, {"max_steps": 4}),  # in the first rollout the policy still is its reference
        "kl_estimator": ("k3", {"kl_coef": 0.2, "max_steps": 4}),
        "cliprange": (1e-3, AGAIN["ppo"]),
        "cliprange_value": (1e-3, AGAIN["ppo"]),
        "vf_coef": 5.0,
        "gamma": 0.5,
        "lam": 0.1,
        "whiten_rewards": True,
        "whiten_advantages": False,
        "missing_eos_penalty": 1.0,
        "target_kl": (1e-6, AGAIN["ppo"]),
        "critic_learning_rate": 1e-1,
        "critic_model": "JUDGE",
    },
    "spo": {
        **shared("spo"),
        **KL_IN_LOSS,
        "epsilon": (1e-3, AGAIN["spo"]),
        "epsilon_high": (1e-3, AGAIN["spo"]),
        "num_iterations": 2,
        "generation_batch_size": 16,
        "steps_per_generation": 2,
        "tracker": "global",
        "reward_range": ([-1.0, 3.0], OFTEN),
        "rho_min": (0.5, OFTEN),
        "rho_max": (0.88, OFTEN),
        "rho_half_life": (1e-4, OFTEN | {"rho_min": 0.1}),
        "rho_divergence": ("k3", OFTEN | {"rho_min": 0.1}),
        "init_rollouts": 2,
        "prioritized_sampling": False,
        "sampling_floor": (5.0, {"max_steps": 12, "per_device_train_batch_size": 4}),
        "opponent": "snapshot",
        "opponent_pool": (1, PLAY | {"opponent_interval": 1}),
        "opponent_interval": (1, PLAY),
    },
}
EVERYWHERE_REFUSED = {
    "use_transformers_paged": True,
    "transformers_continuous_batching_config": {"max_memory_percent": 0.1},
    "label_smoothing_factor": 0.1,
    "data_seed": 1,
    "train_sampling_strategy": "sequential",
    "length_column_name": "tokens",
    "auto_find_batch_size": True,
}
GROUPS = {"scale_rewards": "none", "multi_objective_aggregation": "normalize_then_sum"}
REFUSED = {
    "grpo": EVERYWHERE_REFUSED,
    "ppo": {
        **EVERYWHERE_REFUSED,
        **GROUPS,
        "num_iterations": 2,
        "steps_per_generation": 2,
        "generation_batch_size": 16,
        "epsilon": 0.1,
        "beta": 0.1,
        "use_bias_correction_kl": False,
        "sync_ref_model": True,
        "ref_model_mixup_alpha": 0.1,
        "ref_model_sync_steps": 2,
        "load_best_model_at_end": True,
    },
    "spo": EVERYWHERE_REFUSED | GROUPS | {"num_generations": 4},
}
# Parts of names end in *.
REASONS = {
    "what is logged, and where": """log_* logging_* disable_tqdm report_to run_name project trackio_* output_dir debug
        include_num_input_tokens_seen num_completions_to_print skip_memory_metrics""",
    "what is saved, and where": "save_* hub_* push_to_hub enable_jit_checkpoint",
    "what is measured; that it changes nothing is tested in test_online.py": """eval_* per_device_eval_batch_size
        bf16_full_eval fp16_full_eval prediction_loss_only num_generations_eval include_for_metrics batch_eval_metrics
        watch do_train do_eval do_predict metric_for_best_model greater_is_better load_best_model_at_end""",
    "how a run is resumed": "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint",
    "the machine and its processes, on which what is learned does not depend but for rounding": """use_cpu fp16 tf32
        activation_checkpointing* gradient_checkpointing* torch_compile* use_liger_kernel liger_kernel_config use_cache
        torch_empty_cache_steps full_determinism accelerator_config parallelism_config dataloader_* ddp_* fsdp*
        deepspeed local_rank ds3_gather_for_generation pad_to_multiple_of cache_implementation""",
    "GRPOTrainer averages over the tokens of all devices whatever it says": "average_tokens_across_devices",
    "another engine, which is not installed": "use_vllm vllm_*",
    "another engine, which is tested in test_online.py": "use_transformers_continuous_batching",
    "for optimizers of other packages (GaLore, APOLLO, ...)": "optim_args optim_target_modules",
    "for models that are named and not given": "model_init_kwargs trust_remote_code",
    "which columns rewards see": "remove_unused_columns label_names",
    "for tools, in test_rollout_tools.py and tests/recipes/test_tool_recipes.py": """tools environment tool_timeout
        tool_memory max_tool_calling_iterations max_tool_result_length""",
    "the rewards themselves, which tests/rewards tests": "reward_funcs",
    "what the recipe asks and refuses, in tests/recipes/test_online_check.py": "thinking_ratio allow_equal_rewards",
    "what failing rewards do, in test_graceful_shutdown.py": "reward_errors",
}


def listed(name: str) -> bool:
    patterns = " ".join(REASONS.values()).split()
    return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in patterns)


@pytest.mark.parametrize("method", CHANGES)
def test_every_field_changes_what_is_learned_or_is_refused_or_has_a_reason(method):
    names = {field.name for field in dataclasses.fields(RECIPES[method]) if field.init}
    places = {name: [name in CHANGES[method], name in REFUSED[method]] for name in names}
    unknown = [name for name, found in places.items() if not any(found) and not listed(name)]
    assert not unknown, "add each of them to CHANGES, REFUSED or REASONS"
    assert not [name for name, found in places.items() if all(found)]
    assert not (CHANGES[method].keys() | REFUSED[method].keys()) - names
    patterns = itertools.chain.from_iterable(text.split() for text in REASONS.values())
    everywhere = {field.name for config in RECIPES.values() for field in dataclasses.fields(config)}
    assert not [one for one in patterns if not any(name.startswith(one.rstrip("*")) for name in everywhere)]


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in REFUSED for name in REFUSED[method]])
def test_an_option_without_effect_is_refused(tmp_path, method, name):
    own = {**METHODS[method][2], "output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    with pytest.raises(ValueError, match=name) as error:
        RECIPES[method](**own | {name: REFUSED[method][name]})
    assert isinstance(error.value, InputError)


def fast(method: str, name: str) -> bool:
    """What TRL's GRPOConfig lacks, and what once had no effect; all others take a minute."""
    own = {field.name for field in dataclasses.fields(CONFIGS[method])} - {
        field.name for field in dataclasses.fields(RolloutConfig)
    }
    return name in own | {"entropy_coef", "use_adaptive_entropy", "disable_dropout", "loss_type", "epsilon_high"}


def cases() -> list:
    pairs = [(method, name) for method in CHANGES for name in CHANGES[method]]
    return [pytest.param(*pair, marks=[] if fast(*pair) else pytest.mark.slow) for pair in pairs]


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Callable[[str, dict], torch.Tensor]:
    """All weights after training with options; of equal options only once."""
    known: dict[tuple, torch.Tensor] = {}
    folder = tmp_path_factory.mktemp("options")

    def train(method: str, options: dict) -> torch.Tensor:
        key = method, repr(sorted(options.items(), key=str))
        if key not in known:
            given = {"reward": bounded()} | BASE | options
            make = given.pop("model", bandit_model)
            trainer = online(method, folder / str(len(known)), model=make(), **given)
            trainer.train()
            known[key] = torch.cat([tensor.flatten() for tensor in weights(trainer).values()])
        return known[key]

    return train


def judge(folder: Path) -> str:
    config = bandit_model().config
    config.num_labels = 1
    MiniMindForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("method", "name"), cases())
def test_it_changes_what_is_learned(tmp_path, learned, method, name):
    change = CHANGES[method][name]
    value, beside = change if isinstance(change, tuple) else (change, {})
    changed = value if isinstance(value, dict) and name in value else {name: value}
    if changed[name] == "JUDGE":
        changed = {name: judge(tmp_path)}
    assert not torch.equal(learned(method, beside), learned(method, beside | changed))
