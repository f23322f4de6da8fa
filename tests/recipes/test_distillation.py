"""The distillation trainer's loss; what the recipe does as a whole is in test_recipes.py."""

import pytest
import torch
from datasets import Dataset

from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.run.distill_config import DistillRecipeConfig
from minimind_trl.tokenization import tiny_tokenizer, with_training_template
from minimind_trl.trainers import AnswersCollator, MiniMindGKDTrainer
from tests.conftest import small_config


@pytest.mark.parametrize("items", [None, 12])
def test_a_mixture_of_experts_is_balanced_while_it_learns(tmp_path, items):
    torch.manual_seed(0)
    student, teacher = (MiniMindForCausalLM(small_config(kind)) for kind in ("moe3", "dense3"))
    messages = [{"role": "user", "content": "sort: 3 1 2"}, {"role": "assistant", "content": " 1 2 3"}]
    ids = list(range(10, 17))
    rows = Dataset.from_list([{"messages": messages, "input_ids": ids, "labels": [-100, *ids[1:]]}] * 2)
    config = DistillRecipeConfig(output_dir=str(tmp_path), teacher_model_name_or_path="teacher", report_to="none")
    trainer = MiniMindGKDTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        processing_class=with_training_template(tiny_tokenizer()),
        data_collator=AnswersCollator(0),
        train_dataset=rows,
    )
    trainer.current_gradient_accumulation_steps = 2
    batch = trainer.data_collator(list(rows))
    learning, outputs = trainer.compute_loss(student.train(), batch, return_outputs=True, num_items_in_batch=items)
    measured = trainer.compute_loss(student.eval(), batch, num_items_in_batch=items)
    share = 1 if items is None else 2
    expected = student.config.router_aux_loss_coef * outputs.aux_loss / share
    torch.testing.assert_close(learning - measured, expected, rtol=1e-2, atol=1e-6)
    assert expected > 1e-5
