"""The doctor's rules: what they find, and what they leave alone."""

from pathlib import Path

import pytest

from minimind_trl.reports import RunFolder, examine

FINE = {"loss": 0.0, "reward": 0.5, "reward_std": 0.5, "entropy": 1.0, "completions/mean_length": 9.0}
TRAINERS = {
    "grpo": "MiniMindGRPOTrainer",
    "ppo": "PPOTrainer",
    "spo": "SPOTrainer",
    "sft": "MiniMindSFTTrainer",
    "dpo": "MiniMindDPOTrainer",
    "reward": "MiniMindRewardTrainer",
}


def found(logs: list[dict], method: str = "grpo", **record) -> list[str]:
    """The names of the findings, most important first."""
    record = {"trainer": TRAINERS[method], "options": {"max_completion_length": 16}} | record
    return [finding.name for finding in examine(RunFolder(Path(), record, [FINE | log for log in logs]))]


@pytest.mark.parametrize(
    ("logs", "name"),
    [
        ([{"explained_variance": -0.2}] * 7, "dead critic"),
        ([{"frac_reward_zero_std": 0.9}] * 2, "reward without spread"),
        ([{}] * 3 + [{"entropy": 0.01}] * 2, "entropy collapse"),
        ([{}] * 3 + [{"completions/mean_length": 1.0}] * 2, "length collapse"),
        ([{"completions/clipped_ratio": 0.9}] * 2, "truncation"),
    ],
)
def test_what_is_a_fault_is_none_where_the_reward_is_as_high_as_it_can_be(logs, name):
    assert found(logs, reward_range=[0.0, 1.0]) == [name]
    at_the_top = [log | {"reward": 0.97} for log in logs]
    assert found(at_the_top, reward_range=[0.0, 1.0]) == []
    assert found(at_the_top, reward_range=[0.0, 5.0]) == found(at_the_top, reward_range=[None, None]) == [name]


def test_a_reward_at_the_top_may_still_be_hacked():
    assert found([{"kl": 4.0, "reward": 3.0}] * 2, reward_range=[-3.0, 3.0]) == ["KL blow-up"]


@pytest.mark.parametrize("name", ["frac_reward_zero_std", "completions/clipped_ratio", "kl", "explained_variance"])
def test_one_noisy_value_convinces_nobody(name):
    noisy, usual = (-10_302.0, 0.8) if name == "explained_variance" else (9.0, 0.1)
    assert found([{name: usual}] * 7 + [{name: noisy}]) == []


def test_a_critic_is_not_blamed_where_rewards_hardly_differ_any_more():
    logs = [{"explained_variance": 0.5}] * 4 + [{"explained_variance": -3.0, "reward_std": 0.01}] * 9
    assert found(logs) == []
    assert found(logs[:4] + [{"explained_variance": -3.0}] * 9) == ["dead critic"]


def test_missing_and_non_finite_figures_are_ignored():
    assert found([{"explained_variance": None, "entropy": float("nan"), "reward_std": float("nan")}] * 9) == []


def test_the_kl_of_ppo_is_that_to_its_reference():
    assert found([{"kl": 3.0}] * 3, method="ppo") == []
    assert found([{"kl_ref": 3.0}] * 3, method="ppo") == ["KL blow-up"]


def findings(
    method: str, held_out: list[dict], training: list[dict] = (), rate: float = 1.0, **record
) -> dict[str, str]:
    """`{name: severity}` of a run whose learning rate is `rate` times the usual one, most important first."""
    options = {"max_completion_length": 16, "learning_rate": 1e-3 * rate, "max_length": 64, "num_generations": 8}
    record = {"trainer": TRAINERS[method], "options": options, "usual_learning_rate": 1e-3} | record
    history = [{f"eval_{name}": value for name, value in figures.items()} for figures in held_out]
    history = [{"step": 10 * at, **figures} for at, figures in enumerate(history)]
    history[1:1] = [{"loss": 1.0, "epoch": 1.0, "step": 5} | log for log in training]
    return {finding.name: finding.severity for finding in examine(RunFolder(Path(), record, history))}


def curve(name: str, *values: float, **same) -> list[dict]:
    return [{name: value, **same} for value in values]


def test_a_learning_rate_is_too_high_if_it_is_and_the_loss_shows_it():
    worse = curve("loss", 2.0, 2.5)
    assert findings("sft", worse, [{"loss": 2.6}] * 5, rate=100) == {"learning rate too high": "fault"}
    assert findings("sft", curve("loss", 2.0, 2.8), [{"loss": 2.6}] * 5) == {"learning rate too high": "fault"}
    assert findings("sft", worse, [{"loss": 2.6}] * 5) == {}, "worse, but at the usual rate: some other cause"
    assert findings("sft", curve("loss", 2.0, 1.0), [{"loss": 1.0}] * 5, rate=100) == {
        "learning rate too high": "warning"
    }
    assert findings("sft", curve("loss", 2.0, 1.0), [{"loss": 1.0}] * 5, rate=20) == {}


def test_a_learning_rate_is_too_low_if_it_is_and_nothing_moves():
    assert findings("sft", curve("loss", 2.0, 1.9), rate=0.01) == {"learning rate too low": "fault"}
    assert findings("sft", curve("loss", 2.0, 0.5), rate=0.01) == {}
    assert findings("sft", curve("loss", 2.0, 1.9)) == {}
    goes_on = {"options": {"learning_rate": 1e-5, "max_steps": 1000}}
    assert findings("sft", curve("loss", 2.0, 1.9), **goes_on) == {}, "too early to tell"
    still = {"reward_std": 0.4, "prompts": 100}
    assert findings("grpo", curve("reward", 0.3, 0.31, **still), rate=0.01) == {"learning rate too low": "fault"}
    assert findings("grpo", curve("reward", 0.3, 0.6, **still), rate=0.01) == {}
    assert findings("grpo", curve("reward", 0.3, 0.1, **still), rate=20) == {"learning rate too high": "fault"}


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_rows_are_known_by_heart_after_many_epochs_only(method):
    apart = curve("loss", 0.7, 0.5, 0.69)
    assert findings(method, apart, [{"loss": 0.01, "epoch": 20.0}] * 5) == {"memorising": "fault"}
    assert findings(method, apart, [{"loss": 0.01, "epoch": 2.0}] * 5) == {}
    assert findings(method, curve("loss", 0.7, 0.5, 0.02), [{"loss": 0.001, "epoch": 20.0}] * 5) == {}, "learned"


def test_another_chat_template_matters_to_a_model_that_has_learned_one():
    def seen(method, phase):
        checks = {"other_template": True} | ({"start_phase": phase} if phase else {})
        return findings(method, curve("loss", 0.7, 0.5), checks=checks)

    assert seen("dpo", "sft") == seen("dpo", None) == {"template mismatch": "fault"}
    assert seen("sft", "sft") == {"template mismatch": "warning"}
    assert seen("sft", "pretrain") == {}


def test_conversations_without_their_end_and_rows_that_are_cut():
    def seen(**checks):
        return findings("sft", curve("loss", 2.0, 1.0), checks=checks)

    assert seen(rows_with_end=0.03, rows_cut=0.97) == {"end of turn never trained": "fault", "truncation": "warning"}
    assert seen(rows_with_end=0.3) == {"end of turn never trained": "warning"}
    assert seen(rows_with_end=0.9, rows_cut=0.1) == {}


def test_pairs_that_hardly_differ_matter_if_nothing_is_learned_from_them():
    def seen(accuracy):
        figures = [{"loss": 0.69, "rewards/accuracies": 0.5}, {"loss": 0.5, "rewards/accuracies": accuracy}]
        return findings("dpo", figures, checks={"answer_similarity": 0.97})

    assert seen(0.7) == {"chosen and rejected hardly differ": "fault"}
    assert seen(0.98) == {"chosen and rejected hardly differ": "warning"}


def test_dpo_may_lower_the_rejected_answers_and_a_little_the_chosen():
    def seen(chosen, rejected):
        before = {"loss": 0.69, "logps/chosen": -10.0, "logps/rejected": -12.0}
        return findings("dpo", [before, {"loss": 0.5, "logps/chosen": chosen, "logps/rejected": rejected}])

    assert seen(-18.0, -30.0) == {"both log-probabilities fall": "fault"}
    assert seen(-11.0, -30.0) == seen(-9.0, -30.0) == {}


def test_labels_by_chance():
    noise = [{"loss": 0.70, "accuracy": 0.5}, {"loss": 0.71, "accuracy": 0.52}]
    assert findings("reward", noise, [{"epoch": 2.0}]) == {"labels without signal": "fault"}
    assert findings("reward", noise, [{"epoch": 0.2}]) == {}, "too early to tell"
    from_above = [{"loss": 0.80, "accuracy": 0.5}, {"loss": 0.69, "accuracy": 0.54}]
    assert findings("reward", from_above, [{"epoch": 2.0}]) == {"labels without signal": "fault"}
    assert findings("reward", [noise[0], {"loss": 0.4, "accuracy": 0.85}]) == {}


def test_small_groups_are_to_blame_only_where_rewards_differ():
    def seen(size, spread, equal=0.6):
        log = {"reward": 0.4, "reward_std": spread, "frac_reward_zero_std": equal}
        options = {"num_generations": size, "learning_rate": 1e-3}
        return findings("grpo", curve("reward", 0.4, 0.4), [log] * 5, options=options)

    assert seen(2, 0.4) == {"groups too small": "fault"}
    assert seen(8, 0.4) == {}
    assert seen(2, 0.0, equal=1.0) == {"reward without spread": "fault"}


def watched(rewards: list[float], measures: list[float]) -> dict[str, str]:
    noise = {"reward_std": 0.3, "watch/exact_match_std": 0.4, "prompts": 600}
    pairs = zip(rewards, measures, strict=True)
    return findings("grpo", [{"reward": reward, "watch/exact_match": one, **noise} for reward, one in pairs])


def test_a_reward_is_hacked_if_it_rises_while_what_it_does_not_see_falls():
    assert watched([0.3, 0.4, 0.6], [0.2, 0.5, 0.4]) == {"reward hacking": "fault"}
    assert watched([0.3, 0.4, 0.6], [0.2, 0.5, 0.48]) == {}, "within noise"
    assert watched([0.3, 0.4, 0.2], [0.2, 0.5, 0.4]) == {}, "the reward falls as well: something else"
    assert watched([0.3, 0.4, 0.6], [0.2, 0.5, 0.7]) == {}
    assert watched([0.3], [0.2]) == {}


CALLS = {"tools/call_frequency": 1.0, "tools/failure_frequency": 0.0, "tools/repeated_calls": 0.0}


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ({"tools/call_frequency": 0.001}, "tool never called"),
        ({"tools/failure_frequency": 0.5, "tools/errors": 0.5}, "calls fail"),
        ({"tools/repeated_calls": 0.6}, "calls repeated"),
    ],
)
def test_tools_that_are_not_called_or_called_in_vain(log, name):
    assert found([CALLS] * 4) == []
    assert found([CALLS] * 4 + [CALLS | log] * 2) == [name]
    assert found([log | {"tools/call_frequency": 0.0}] * 4) == ["tool never called"]
    solved = [CALLS | log | {"reward": 1.0}] * 4
    assert found(solved, reward_range=[0.0, 1.0]) == []


def test_calls_that_fail_by_the_tools_fault_are_told_apart():
    run = RunFolder(
        Path(),
        {"trainer": TRAINERS["grpo"], "options": {}},
        [
            FINE
            | CALLS
            | {
                "tools/failure_frequency": 0.5,
                "tools/timeouts": 0.4,
                "tools/errors": 0.1,
            }
        ]
        * 4,
    )
    [finding] = examine(run)
    assert "50% of the calls of tools fail (10% errors, 40% timeouts)" in finding.sentence
    assert "--tool_timeout" in finding.sentence
