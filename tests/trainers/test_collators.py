"""Batches of packed rows and of answers."""

import pytest
import torch
from datasets import Dataset

from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.run import SFTRecipeConfig
from minimind_trl.tokenization import tiny_tokenizer, with_training_template
from minimind_trl.trainers import AnswersCollator, MiniMindSFTTrainer, PackedRowsCollator
from tests.conftest import small_config


def test_packed_rows_start_anew_and_no_sequence_follows_from_another():
    rows = [{"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]}]
    rows += [{"input_ids": [3, 4], "labels": [3, -100], "seq_lengths": [2]}]
    batch = PackedRowsCollator(pad_token_id=0)(rows)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]


def test_answers_come_with_the_prompt_of_the_last_one():
    rows = [
        {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5]},
        {"input_ids": [6, 7], "labels": [-100, 7]},
    ]
    batch = AnswersCollator(pad_token_id=0)(rows)
    assert batch["prompts"].tolist() == [[1, 2, 3], [0, 0, 6]]
    assert batch["prompt_attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, -100, 4, 5], [-100, 7, -100, -100, -100]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_and_padded_rows_have_the_same_loss_and_gradient(tmp_path, attention):
    texts = [f"words: {'cat dog ' * (n % 5 + 1)}. again?" for n in range(24)]
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f" cat {n}"}]}
        for n, text in enumerate(texts)
    ]
    model = MiniMindForCausalLM(small_config("dense3"))
    model.set_attn_implementation(attention)
    losses, gradients = [], []
    for packing in (False, True):
        options = {"packing": packing, "max_length": 96, "per_device_train_batch_size": 24, "report_to": "none"}
        trainer = MiniMindSFTTrainer(
            model=model,
            args=SFTRecipeConfig(str(tmp_path), bf16=False, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=with_training_template(tiny_tokenizer()),
        )
        [batch] = trainer.get_train_dataloader()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.model.embed_tokens.weight.grad.clone())
        model.zero_grad()
        rows_in_batch = batch["input_ids"].shape[0]
        assert (rows_in_batch < 24) == packing
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)
