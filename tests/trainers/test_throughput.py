"""The figures that every log of training has, and where they come from."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from transformers.integrations import WandbCallback

from minimind_trl.hardware import peak_flops, train_flops_per_token
from minimind_trl.trainers import throughput
from minimind_trl.trainers.throughput import count_tokens
from tests.forking import run
from tests.trainers.tiny import TRAINERS, dpo, gkd, reward, sft, text_rows

FIGURES = {
    "loss",
    "learning_rate",
    "grad_norm",
    "epoch",
    "global_step",
    "tokens_per_second",
    "samples_per_second",
    "steps_per_second",
    "num_input_tokens_seen",
    "mfu_percent",
    "eta_minutes",
}


def training_logs(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_logs_the_same_figures(name, tmp_path):
    trainer = TRAINERS[name](tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    logs = training_logs(trainer)
    assert [entry["global_step"] for entry in logs] == [2, 4]
    assert all(entry.keys() >= FIGURES for entry in logs)
    assert all(entry[figure] > 0 for entry in logs for figure in ("tokens_per_second", "mfu_percent"))
    assert logs[0]["eta_minutes"] > 0 == logs[-1]["eta_minutes"]
    ours = FIGURES - {"loss", "learning_rate", "grad_norm", "epoch"}
    for entry in trainer.state.log_history:
        assert not any("num_tokens" in figure for figure in entry), "TRL's own count, which a resume sets back"
        if "loss" not in entry:
            assert not ours & entry.keys()
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
def test_tokens_are_those_that_trl_counts(name, tmp_path):
    trainer = TRAINERS[name](tmp_path, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == trainer._total_train_tokens > 0


def test_padding_does_not_count(tmp_path):
    trainer = sft(tmp_path, max_steps=8)  # one epoch
    trainer.train()
    assert trainer.state.num_input_tokens_seen == sum(len(row["input_ids"]) for row in trainer.train_dataset)


def test_packed_rows_count_whole_although_they_hold_pad_ids(tmp_path):
    rows = text_rows(16).map(lambda row: {"text": row["text"] + "<|endoftext|>"})  # which is also the pad token
    trainer = sft(tmp_path, rows=rows, packing=True, padding_free=True, max_steps=-1, num_train_epochs=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert "attention_mask" not in batch and (batch["input_ids"] == trainer.processing_class.pad_token_id).any()
    trainer.train()
    assert trainer.state.num_input_tokens_seen == sum(len(row["input_ids"]) for row in trainer.train_dataset)
    assert training_logs(trainer)[-1]["mfu_percent"] > 0


def test_answers_that_a_gkd_student_writes_count(tmp_path, monkeypatch):
    trainer = gkd(tmp_path, lmbda=1.0, max_new_tokens=5, max_steps=1, logging_steps=1)
    written = []
    original = trainer.generate_on_policy_outputs

    def generate(*args):
        written.append(original(*args))
        return written[-1]

    monkeypatch.setattr(trainer, "generate_on_policy_outputs", generate)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == sum(int(mask.sum()) for _, mask, _ in written)


def test_counting_goes_on_when_a_run_is_resumed(tmp_path):
    options = {"max_steps": 6, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    whole = sft(tmp_path / "whole", **options)
    whole.train()
    first = sft(tmp_path / "parts", **options)
    first.train()
    resumed = sft(tmp_path / "parts", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    counts = [entry["num_input_tokens_seen"] for entry in training_logs(whole)]
    assert counts == sorted(counts)
    assert [entry["num_input_tokens_seen"] for entry in training_logs(resumed)] == counts
    # the pace is this session's
    assert training_logs(resumed)[-2]["tokens_per_second"] < 1e6


class Clock:
    """In place of the module `time`; goes on only when told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def taking(self, seconds: float, function):
        def slow(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return slow


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_rates_are_over_the_time_since_the_last_log_without_evaluation_and_saving(tmp_path, clock):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = sft(tmp_path, max_steps=8, **options)
    trainer.compute_loss = clock.taking(0.25, trainer.compute_loss)  # of evaluation too: 2 batches
    trainer.save_rng_state = clock.taking(4, trainer.save_rng_state)
    trainer.train()
    logs = training_logs(trainer)
    for before, entry in itertools.pairwise(logs):
        assert entry["steps_per_second"] == 4
        assert entry["samples_per_second"] == 8
        tokens = entry["num_input_tokens_seen"] - before["num_input_tokens_seen"]
        assert entry["tokens_per_second"] == tokens / 0.5
    # at the third log, six steps and two rounds of evaluation and saving are done, and two steps are left
    rounds = 2 * (0.25 * len(trainer.get_eval_dataloader()) + 4)
    assert logs[2]["eta_minutes"] == pytest.approx((6 * 0.25 + rounds) / 6 * 2 / 60)


def test_mfu_is_flops_over_the_peak(tmp_path):
    trainer = dpo(tmp_path, max_steps=1, logging_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()
    [entry] = training_logs(trainer)
    tokens, squares = count_tokens(batch).tolist()
    assert entry["num_input_tokens_seen"] == tokens == batch["attention_mask"].sum()
    # three parts of training, and one more of the reference model's forward pass
    flops = train_flops_per_token(trainer.model.config, squares / tokens) * 4 / 3
    expected = 100 * flops * entry["tokens_per_second"] / peak_flops("cpu", torch.float32)
    assert entry["mfu_percent"] == pytest.approx(expected)


def test_a_reward_model_is_not_charged_for_the_vocabulary(tmp_path):
    trainer = reward(tmp_path)
    config = trainer.model.config
    assert trainer.flops_per_token(10) == train_flops_per_token(config, 10, output_size=1)
    assert trainer.flops_per_token(10) < train_flops_per_token(config, 10)


def test_parameters_that_zero_3_has_sharded_count(tmp_path):
    """Of those its tensors are empty, and the frozen ones must not make all of LoRA's free."""
    trainer = sft(tmp_path)
    for parameter in trainer.model.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    expected = trainer.flops_per_token(10)
    for parameter in trainer.model.parameters():
        parameter.ds_numel, parameter.data = parameter.numel(), parameter.data.new_empty(0)
    assert trainer.flops_per_token(10) == expected


def test_models_whose_flops_are_unknown_have_no_mfu(tmp_path, monkeypatch):
    monkeypatch.setattr("minimind_trl.trainers.throughput.COUNTED_MODELS", ())
    trainer = sft(tmp_path)
    trainer.train()
    assert FIGURES - training_logs(trainer)[-1].keys() == {"mfu_percent"}
    with pytest.raises(ValueError, match="gpt2"):
        train_flops_per_token(SimpleNamespace(model_type="gpt2"), 10)


def test_wandb_gets_the_names_in_two_groups(tmp_path, monkeypatch):
    sent = []
    fake = SimpleNamespace(log=sent.append, run=SimpleNamespace(summary={}))
    callback = WandbCallback.__new__(WandbCallback)
    callback._wandb, callback._initialized = fake, True
    trainer = sft(tmp_path, eval_strategy="steps", eval_steps=2)
    for event in ("on_train_begin", "on_train_end"):
        monkeypatch.setattr(callback, event, lambda *args, **kwargs: None)
    trainer.add_callback(callback)
    trainer.train()
    names = set().union(*sent)
    assert names >= {f"train/{figure}" for figure in FIGURES} | {"eval/loss", "eval/mean_token_accuracy"}
    assert all(name.startswith(("train/", "eval/")) for name in names)


def test_counts_of_batches():
    ids = torch.zeros(2, 4, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert count_tokens({"input_ids": ids, "attention_mask": mask}).tolist() == [5, 9 + 4]
    packed = {"input_ids": ids[:1], "position_ids": torch.tensor([[0, 1, 2, 0]])}
    assert count_tokens(packed).tolist() == [4, 9 + 1]
    packed_and_padded = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.tensor([[0, 0, 1, 0]] * 2)}
    assert count_tokens(packed_and_padded).tolist() == [5, (1 + 4) + (3 + 1)]
    assert count_tokens({"input_ids": ids}).tolist() == [8, 32]
    assert count_tokens([{"prompt": "x"}]) is None


def test_untimed_blocks_may_be_nested(tmp_path, clock):
    trainer = sft(tmp_path, max_steps=2, logging_steps=1)
    save = trainer.maybe_log_save_evaluate

    def slow(*args, **kwargs):
        clock.now += 1
        with trainer.untimed():
            clock.now += 2
            with trainer.untimed():
                clock.now += 4
            clock.now += 8
        save(*args, **kwargs)

    trainer.maybe_log_save_evaluate = slow
    trainer.train()
    first, second = training_logs(trainer)
    assert first["steps_per_second"] == second["steps_per_second"] == 1
    assert first["eta_minutes"] == 15 / 60


TWO_PROCESSES = """
import json, sys
from tests.trainers.tiny import sft
trainer = sft(sys.argv[1], max_steps=2, logging_steps=1)
trainer.train()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"logs": logs, "trl": trainer._total_train_tokens, "processes": trainer.args.world_size}))
"""


@pytest.mark.slow
def test_figures_are_those_of_all_processes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    result = run(script, [tmp_path / "out"], processes=2)
    assert result.returncode == 0, result.stderr
    report = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    assert report["processes"] == 2
    assert report["logs"][-1]["num_input_tokens_seen"] == report["trl"] > 0
    assert report["logs"][0]["samples_per_second"] == pytest.approx(4 * report["logs"][0]["steps_per_second"])
