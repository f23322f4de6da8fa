"""A loss or gradient that is not finite stops training before the weights change."""

import pytest

from minimind_trl.errors import TrainingError
from minimind_trl.trainers import last_good_checkpoint
from tests.trainers.accidents import SAVING, checkpoints, same, weights
from tests.trainers.tiny import dpo, sft


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [sft, dpo])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(make, value, tmp_path):
    trainer = make(tmp_path, gradient_accumulation_steps=2, **SAVING)
    compute, calls, batches = trainer.compute_loss, [], []

    def broken(model, inputs, *args, **kwargs):
        batches.append(inputs["input_ids"])
        loss = compute(model, inputs, *args, **kwargs)
        calls.append(weights(trainer))
        return loss * value if len(calls) == 6 else loss  # the second batch of step 3

    trainer.compute_loss = broken
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "step 3: the loss is" in message and str(value) in message
    assert f"the last good checkpoint is {tmp_path}/checkpoint-2" in message
    for ids in batches[-1]:
        row = ids[ids != trainer.processing_class.pad_token_id]
        assert trainer.processing_class.decode(row)[:20] in message
    assert len(calls) == 6 and same(weights(trainer), calls[4])
    assert last_good_checkpoint(tmp_path) == tmp_path / "checkpoint-2" and checkpoints(tmp_path) == ["checkpoint-2"]


def test_a_gradient_that_is_no_number_stops_too(tmp_path):
    trainer = sft(tmp_path)
    before = weights(trainer)
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: the norm of the gradient is nan.*there is no good checkpoint"):
        trainer.train()
    assert same(weights(trainer), before)
