"""Pairs and prompts that the mixture has tokenized give the batches that TRL makes of their messages."""

import json
import random

import pytest
from datasets import IterableDataset
from trl import DPOConfig, RewardConfig

from minimind_trl import DatasetMixer
from minimind_trl.data.row_renderer import TOKEN_COLUMNS
from minimind_trl.models import MiniMindConfig, MiniMindForSequenceClassification
from minimind_trl.run.rl_run import _prompt_lengths
from minimind_trl.tokenization import inference_template, tiny_tokenizer
from minimind_trl.trainers import MiniMindDPOTrainer, MiniMindRewardTrainer, RolloutConfig
from minimind_trl.trainers.tokenized_pairs import DPO_TOKENS, REWARD_TOKENS, has_tokens

from .online import online
from .tiny import QUICK, tiny_model

TOOL = {"type": "function", "function": {"name": "now", "description": "天气 <now>", "parameters": {}}}
CONTENTS = ("hi", "天气 🙂 e\u0301 naïve", "<|im_end|> x", " \n a \n\n", "🇩🇪" * 3, "<think>a</think>b", "word " * 12)


def turns(draw, number):
    """A prompt of one or two questions."""
    asked = [{"role": "user", "content": f"{draw.choice(CONTENTS)} {number}"}]
    if draw.random() < 0.3:
        asked += [{"role": "assistant", "content": draw.choice(CONTENTS)}, {"role": "user", "content": "again"}]
    return asked


def pairs(count=40):
    draw = random.Random(0)
    rows = []
    for number in range(count):
        sides = {
            side: [{"role": "assistant", "content": f"{draw.choice(CONTENTS)} {side}"}]
            for side in ("chosen", "rejected")
        }
        if draw.random() < 0.3:
            sides["chosen"][0]["reasoning_content"] = draw.choice(CONTENTS)
        tools = {"tools": json.dumps([TOOL])} if draw.random() < 0.3 else {}
        rows.append({"prompt": turns(draw, number), **sides, **tools})
    return rows


def built(tmp_path, monkeypatch, rows, phase, tokenizer):
    """The training rows of a mixture of these rows, with and without their tokens."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "mixture.yaml"
    source = "{name: a, source: a.jsonl, mix_ratio: 1.0}"
    path.write_text(f"metadata: {{phase: {phase}}}\ndatasets: [{source}]\nvalidation: none\n")
    mixer = DatasetMixer.from_yaml(path)
    kept, plain = (mixer.build(tokenizer, keep_tokens=keep)["train"] for keep in (True, False))
    names = [name for name in TOKEN_COLUMNS if name in kept.column_names]
    assert names and kept.remove_columns(names).to_list() == plain.to_list()
    return kept, plain


def batches(trainer):
    return [{name: value.tolist() for name, value in batch.items()} for batch in trainer.get_train_dataloader()]


@pytest.mark.parametrize("generation", ["minimind2", "minimind3"])
def test_batches_are_those_of_trl(tmp_path, monkeypatch, generation):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = inference_template(generation)
    kept, plain = built(tmp_path, monkeypatch, pairs(), "dpo", tokenizer)
    for_reward, _ = built(tmp_path, monkeypatch, pairs(), "reward", tokenizer)
    assert has_tokens(kept, DPO_TOKENS) and not has_tokens(plain, REWARD_TOKENS)
    classifier = MiniMindForSequenceClassification(MiniMindConfig.from_preset("tiny", num_labels=1))

    def dpo(rows, **options):
        args = DPOConfig(output_dir=str(tmp_path / "run"), **{**QUICK, "precompute_ref_log_probs": False, **options})
        return MiniMindDPOTrainer(tiny_model(), tiny_model(), args=args, train_dataset=rows, processing_class=tokenizer)

    def reward(rows, **options):
        args = RewardConfig(output_dir=str(tmp_path / "run"), **{**QUICK, **options})
        return MiniMindRewardTrainer(classifier, args=args, train_dataset=rows, processing_class=tokenizer)

    for make, options in (
        (dpo, {"max_length": None}),
        (dpo, {"max_length": 40}),
        (dpo, {"max_length": 40, "truncation_mode": "keep_end"}),
        (reward, {"max_length": None}),
        (reward, {"max_length": 60}),
    ):
        kept = for_reward if make is reward else kept
        ours, theirs = make(kept, **options), make(plain, **options)
        assert "prompt" in theirs.train_dataset.column_names  # TRL's own way
        assert batches(ours) == batches(theirs)
        assert ours.rows_dropped == theirs.rows_dropped
        streamed = make(kept.to_iterable_dataset(), max_steps=20, **options)
        expected = ours.train_dataset.to_list()
        assert list(streamed.train_dataset) == expected
    assert theirs.rows_dropped["train"] > 0


def test_pairs_without_tokens_are_left_to_trl(tmp_path, monkeypatch):
    """So are pairs whose prompt alone the chat template refuses: it is not known where their answers begin."""
    tokenizer = tiny_tokenizer()
    refusal = "{% if messages[-1].role == 'user' %}{{ raise_exception('no answer') }}{% endif %}"
    tokenizer.chat_template = refusal + inference_template("minimind3")
    kept, _ = built(tmp_path, monkeypatch, pairs(4), "dpo", tokenizer)
    assert set(kept["prompt_tokens"]) == {None} and not has_tokens(kept, DPO_TOKENS)
    assert not has_tokens(IterableDataset.from_generator(lambda: iter(pairs(1))), REWARD_TOKENS)
    assert not has_tokens(kept.to_iterable_dataset(), DPO_TOKENS)


def test_a_mixture_for_reward_models_does_not_look_for_where_answers_begin(tmp_path, monkeypatch):
    kept, _ = built(tmp_path, monkeypatch, pairs(4), "reward", tiny_tokenizer())
    assert set(kept["prompt_tokens"]) == {None}
    for rows in (kept, kept.to_iterable_dataset()):
        assert has_tokens(rows, REWARD_TOKENS) and not has_tokens(rows, DPO_TOKENS)


def test_prompts_are_asked_with_the_tokens_of_the_mixture_only_where_they_are_the_same(tmp_path, monkeypatch):
    draw, tokenizer = random.Random(1), tiny_tokenizer()
    rows = [{"prompt": turns(draw, number)} for number in range(24)]
    kept, plain = built(tmp_path, monkeypatch, rows, "rlaif", tokenizer)

    def asked(rows, **options):
        trainer = online("grpo", tmp_path / "run", rows=rows, **options)
        rows = trainer.with_rendered_prompts(list(rows))
        return trainer.tokenize_prompts([row["prompt"] for row in rows], rows)

    expected = asked(plain)
    assert asked(kept) == expected == list(kept["prompt_ids"])
    wrong = kept.map(lambda row: {"prompt_ids": [1]})
    assert asked(wrong) == [[1]] * len(rows)  # they are taken
    opened = {"chat_template_kwargs": {"open_thinking": True}}
    assert asked(wrong, **opened) == asked(plain, **opened) != expected
    assert asked(wrong.map(lambda _: opened)) == asked(plain.map(lambda _: opened)) != expected
    assert asked(wrong.add_column("tools", [json.dumps([TOOL])] * len(rows))) == expected

    def lengths(rows, **options):
        return _prompt_lengths(RolloutConfig(str(tmp_path), use_cpu=True, **options), tokenizer, rows, [], {})

    assert lengths(kept) == lengths(plain) == list(map(len, expected))
    assert lengths(wrong) == [1] * len(rows) and lengths(wrong, **opened) == lengths(plain, **opened)
