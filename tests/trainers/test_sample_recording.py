"""What trainers write to samples.jsonl, and that training is the same without it."""

import math
from pathlib import Path

import pytest
from datasets import Dataset

from minimind_trl.reports.samples import SampleFile, read_samples
from minimind_trl.trainers import MiniMindDPOTrainer, MiniMindRewardTrainer, MiniMindSFTTrainer
from tests.trainers import tiny
from tests.trainers.online import METHODS, equal, online, weights

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


def samples_of(trainer, **options) -> dict[str, dict[int, list[dict]]]:
    """Evaluate and train; the samples by kind and step."""
    trainer.record_samples_to(SampleFile(Path(trainer.args.output_dir)))
    trainer.evaluate()
    trainer.train(**options)
    found: dict = {}
    for sample in read_samples(trainer.samples.path):
        found.setdefault(sample["kind"], {}).setdefault(sample["step"], []).append(sample)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_answers_of_a_rollout_with_what_each_token_was_trained_by(method, tmp_path):
    penalty = {"kl_coef": 0.1} if method == "ppo" else {"beta": 0.1}
    trainer = online(method, tmp_path / "a", **penalty, **EVALUATED)
    samples = samples_of(trainer)
    moments = samples["rollout"]
    assert list(moments) == ([0, 2] if method == "ppo" else [0, 1, 2, 3])  # PPO takes two steps on a rollout
    for sample in (sample for at_once in moments.values() for sample in at_once):
        kinds = {"advantages", "log_probs", "kl"} | ({"values", "ratios"} if method == "ppo" else set())
        assert all(len(sample[kind]) == len(sample["tokens"]) > 0 for kind in kinds)
        assert sample["reward"] == sample["rewards"]["low_ids"]
        assert all(value < 0 for value in sample["log_probs"])
    assert all(value == pytest.approx(0, abs=1e-5) for sample in moments[0] for value in sample["kl"])
    assert [len(answers) for answers in samples["answer"].values()] == [4] * 3  # of the first batch
    assert all(answer["reward"] is not None for answer in samples["answer"][0])

    if method == "ppo":
        other = online(method, tmp_path / "b", **penalty, **EVALUATED)
        other.evaluate()
        other.train()
        assert equal(weights(trainer), weights(other))


def test_groups_of_grpo_have_opposite_advantages(tmp_path):
    moments = samples_of(online("grpo", tmp_path, max_steps=1))["rollout"]
    first = [sample for sample in moments[0] if sample["group"] == 0]
    assert len(first) == 4 and len({str(sample["prompt"]) for sample in first}) == 1
    assert sum(sample["advantages"][0] for sample in first) == pytest.approx(0, abs=1e-3)
    best = max(first, key=lambda sample: sample["reward"])
    assert best["advantages"][0] == max(sample["advantages"][0] for sample in first) > 0


def test_a_resumed_run_records_each_moment_once(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = samples_of(online("spo", tmp_path / "a", **options))
    samples_of(online("spo", tmp_path / "b", **options))
    resumed = samples_of(
        online("spo", tmp_path / "b", **options), resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2")
    )
    assert resumed == whole


def test_held_out_rows_with_the_loss_of_each_token(tmp_path):
    trainer = tiny.sft(tmp_path, MiniMindSFTTrainer, tiny.chat_rows(), assistant_only_loss=True, **EVALUATED)
    trainer.held_out = tiny.chat_rows(4)
    samples = samples_of(trainer)
    assert list(samples["loss"]) == [0, 2, 4] and list(samples["answer"]) == [0, 2, 4]
    for sample in samples["loss"][4]:
        assert "".join(sample["tokens"]).startswith("<|im_start|>user\ncount to")
        assert len(sample["tokens"]) == len(sample["losses"]) and sample["losses"][0] is None
    losses = [loss for sample in samples["loss"][4] for loss in sample["losses"] if loss is not None]
    [last] = [entry["eval_loss"] for entry in trainer.state.log_history[-2:] if "eval_loss" in entry]
    assert sum(losses) / len(losses) == pytest.approx(last, rel=1e-3)
    [answer, *_] = samples["answer"][0]
    assert answer["prompt"] == [{"role": "user", "content": "count to 0"}] and answer["right"] == "1"


def pairs(trainer: type, example, folder: Path):
    """A trainer on pairs as a recipe makes it."""

    def row(n: int) -> dict:
        sides = {"chosen": f"{n} and more" * (n % 3 + 1), "rejected": "no"}
        said = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
        return {"prompt": [{"role": "user", "content": f"say {n}"}], **said}

    rows = Dataset.from_list([row(n) for n in range(16)])
    made = example(folder, **EVALUATED)
    references = {"ref_model": tiny.tiny_model()} if trainer is MiniMindDPOTrainer else {}
    return trainer(
        model=made.model,
        args=made.args,
        processing_class=tiny.tiny_tokenizer(),
        train_dataset=rows,
        eval_dataset=rows.select(range(6)),
        **references,
    )


def test_held_out_pairs_with_the_log_ratio_of_each_token(tmp_path):
    samples = samples_of(pairs(MiniMindDPOTrainer, tiny.dpo, tmp_path))
    assert list(samples["pair"]) == [0, 2, 4] and list(samples["answer"]) == [0, 2, 4]
    before, after = samples["pair"][0][0], samples["pair"][4][0]
    assert "".join(before["chosen"]["tokens"]).startswith("0 and more")
    assert all(ratio == 0 for ratio in before["chosen"]["log_ratios"])
    moved = after["chosen"]
    assert math.fsum(moved["log_ratios"]) == pytest.approx(moved["log_ratio"], rel=1e-2) and moved["log_ratio"] != 0
    assert moved["log_ratio"] > after["rejected"]["log_ratio"]


def test_held_out_pairs_with_their_scores(tmp_path):
    samples = samples_of(pairs(MiniMindRewardTrainer, tiny.reward, tmp_path))["score"]
    assert list(samples) == [0, 2, 4]
    assert samples[0][0]["chosen"] == "0 and more" and samples[0][0]["scores"] != samples[4][0]["scores"]
