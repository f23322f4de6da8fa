"""The rows of a batch in messages."""

import torch

from minimind_trl.trainers.batch_rows import describe_rows


def test_rows_are_described_without_padding():
    class Letters:
        def decode(self, ids):
            return "".join(chr(97 + int(i)) for i in ids)

    ids, mask = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert describe_rows({"input_ids": ids, "attention_mask": mask}, Letters()) == ["ab", "def"]
    assert describe_rows({"input_ids": ids[:1], "position_ids": torch.tensor([[0, 1, 0]])}, Letters()) == ["ab", "c"]
    assert describe_rows([{"prompt": "p"}], Letters()) == ["p"]
    assert describe_rows({"pixels": ids}, Letters()) == []
