"""Measures that the reward does not see."""

import pytest

from minimind_trl.errors import InputError
from minimind_trl.evaluation.measures import main_figures
from minimind_trl.rewards import load_rewards
from minimind_trl.run.online_configs import GRPORecipeConfig
from tests.trainers.online import METHODS, equal, low_ids, online, weights


def ends_low(prompts, completions, completion_ids, **_) -> list[float | None]:
    """None for the first prompt, to which it does not apply."""
    pairs = zip(prompts, completion_ids, strict=True)
    return [None if "say 0" in str(prompt) else float(ids[-1] < 278) for prompt, ids in pairs]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_measured_on_the_held_out_answers_and_training_does_not_see_it(tmp_path, method):

    def trained(**watch):
        trainer = online(method, tmp_path, eval_strategy="steps", eval_steps=1, max_steps=2, **watch)
        figures = trainer.evaluate()
        trainer.train()
        return trainer, figures

    (without, plain), (watching, figures) = trained(), trained(watch_funcs=[ends_low, low_ids])
    assert figures["eval_watch/low_ids"] == figures["eval_reward"] == figures["eval_rewards/low_ids"]
    assert figures["eval_watch/low_ids_std"] == pytest.approx(figures["eval_reward_std"], abs=1e-6)
    assert 0 <= figures["eval_watch/ends_low"] <= 1
    assert {name: value for name, value in figures.items() if "watch" not in name} == plain
    assert equal(weights(watching), weights(without))
    logs = watching.state.log_history
    assert [log["step"] for log in logs if "eval_watch/ends_low" in log] == [1, 2]
    assert not [name for log in logs if "loss" in log for name in log if "watch" in name]


def test_the_line_of_an_evaluation_shows_it_beside_the_reward():
    figures = {"eval_loss": 0.1, "eval_reward": 0.5, "eval_watch/exact_match": 0.25, "eval_watch/exact_match_std": 0.4}
    assert main_figures(figures) == "reward 0.5000, watch/exact_match 0.2500, watch/exact_match_std 0.4000"


def config(**options) -> GRPORecipeConfig:
    given = {"output_dir": "runs/never", "reward_funcs": ["length:low=5,high=9"], "num_generations": 8, "bf16": False}
    return GRPORecipeConfig(**given | {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 10} | options)


def test_the_best_checkpoint_goes_by_the_first_watched_measure_unless_another_is_named():
    best = {"load_best_model_at_end": True, "save_strategy": "steps"}
    watch = {"watch": ["exact_match", "position_match"]}
    assert config(**best, **watch).metric_for_best_model == "watch/exact_match"
    assert config(**watch, save_strategy="best").metric_for_best_model == "watch/exact_match"
    assert config(**best, **watch, metric_for_best_model="reward").metric_for_best_model == "reward"
    assert config(**best).metric_for_best_model == "reward"
    assert config(**best, **watch).greater_is_better is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watch": ["exact_match"], "eval_strategy": "no"}, "measured in evaluations: set --eval_interval N"),
        ({"watch": ["length:low=5,high=9"]}, "--watch length:low=5,high=9: the reward sees it"),
        (
            {"watch": ["exact_match"], "load_best_model_at_end": True, "save_steps": 7},
            "--load_best_model_at_end needs it: set --save_steps 5",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused(options, message):
    with pytest.raises(InputError) as error:
        config(**options)
    assert message in str(error.value)


def test_an_unknown_measure_is_refused_by_its_option():
    with pytest.raises(InputError, match="--watch exact_mach: no such reward; did you mean 'exact_match'"):
        load_rewards(["exact_mach"], option="--watch")
