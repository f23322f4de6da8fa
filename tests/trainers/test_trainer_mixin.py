"""What the constructor of every trainer adds to that of TRL's."""

import pytest
from trl import SFTConfig

from minimind_trl.errors import InputError
from minimind_trl.tokenization import tiny_tokenizer
from tests.trainers.tiny import QUICK, TinySFT, text_rows, tiny_model


def limited(folder, loss_type="nll", **options):
    args = SFTConfig(str(folder), per_device_eval_batch_size=2, loss_type=loss_type, **QUICK)
    return TinySFT(tiny_model(), args, train_dataset=text_rows(), processing_class=tiny_tokenizer(), **options)


def test_evaluation_can_be_limited_to_some_batches(tmp_path):
    assert len(limited(tmp_path, eval_dataset=text_rows(9), eval_batches=2).eval_dataset) == 4
    assert len(limited(tmp_path, eval_dataset=text_rows(9)).eval_dataset) == 9
    rows = {"one": text_rows(9), "other": text_rows(3)}
    parts = limited(tmp_path, eval_dataset=rows, eval_batches=2).eval_dataset
    assert {name: len(part) for name, part in parts.items()} == {"one": 4, "other": 3}
    with pytest.raises(TypeError, match="eval_dataset by name"):
        limited(tmp_path, eval_batches=1)


def test_what_trl_refuses_is_bad_input_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^Invalid `loss_type` none passed[^\n]*$"):
        limited(tmp_path, loss_type="none")
