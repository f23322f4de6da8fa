"""Turns that say that they are not trained (`loss: false`, `weight: 0`, `train: false`) are not, in any trainer."""

import pytest
from datasets import Dataset

from minimind_trl.data.config import Source
from minimind_trl.data.rows import RowConverter
from minimind_trl.evaluation.held_out import tokenize_rows
from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.run import PretrainRecipeConfig, SFTRecipeConfig
from minimind_trl.tokenization import tiny_tokenizer, with_training_template
from minimind_trl.trainers import AnswersCollator, MiniMindSFTTrainer
from minimind_trl.trainers.gkd_trainer import _answers
from tests.conftest import small_config

ROWS = 6


def rows_of(phase, flag):
    """The rows of a mixture, as the trainer of a phase gets them."""
    raws = [
        {
            "messages": [
                {"role": "user", "content": f"sum {number}"},
                {"role": "assistant", "content": f"BADTURN {number}", **flag},
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": f"GOODTURN {number}"},
            ]
        }
        for number in range(ROWS)
    ]
    source = Source(name="rows", source="rows.jsonl")
    converter = RowConverter(source, phase, ["messages"], "rows.jsonl, line 1", tiny_tokenizer())
    return Dataset.from_list([traced.trained for traced in converter.trace(raws)])


def learned(batches, tokenizer):
    labels = [row for batch in batches for row in batch["labels"]]
    return "".join(tokenizer.decode(row[row != -100]) for row in labels)


@pytest.mark.parametrize("flag", [{"loss": False}, {"weight": 0}, {"train": False}], ids=str)
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("phase", "assistant_only"), [("sft", True), ("sft", False), ("midtrain", False)])
def test_they_have_no_labels(tmp_path, phase, assistant_only, packing, flag):
    rows, tokenizer = rows_of(phase, flag), tiny_tokenizer()
    options = {"packing": packing, "max_length": 128, "per_device_train_batch_size": 2, "report_to": "none"}
    if phase == "sft":
        config = SFTRecipeConfig(str(tmp_path), bf16=False, assistant_only_loss=assistant_only, **options)
    else:
        config = PretrainRecipeConfig(str(tmp_path), bf16=False, **options)
    trainer = MiniMindSFTTrainer(
        model=MiniMindForCausalLM(small_config("dense3")),
        args=config,
        train_dataset=rows,
        processing_class=with_training_template(tokenizer) if assistant_only else tokenizer,
    )
    text = learned(trainer.get_train_dataloader(), tokenizer)
    assert "BADTURN" not in text and text.count("GOODTURN") == ROWS
    assert text.count("again") == (0 if assistant_only else ROWS)
    held_out = [zip(*row, strict=True) for row in tokenize_rows(rows, tokenizer, 128, assistant_only)]
    assert "BADTURN" not in tokenizer.decode([token for row in held_out for token, wanted in row if wanted])


def test_a_student_does_not_imitate_them():
    tokenizer = tiny_tokenizer()
    rows = list(_answers(rows_of("distill", {"loss": False}), tokenizer, 128))
    batch = AnswersCollator(tokenizer.pad_token_id)(rows)
    text = learned([batch], tokenizer)
    assert "BADTURN" not in text and text.count("GOODTURN") == ROWS
    assert all("BADTURN" in tokenizer.decode(prompt) for prompt in batch["prompts"])
