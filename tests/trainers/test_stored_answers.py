"""Stored answers in a file."""

import torch

from minimind_trl.trainers.stored_answers import pack_answers, unpack_answers


def test_stored_answers_take_8_bytes_a_token_and_come_back(tmp_path):
    answers = {
        number: (torch.arange(750, dtype=torch.int32), torch.randn(750)) for number in torch.randperm(40).tolist()
    }
    torch.save(pack_answers(answers), tmp_path / "answers.pt")
    assert (tmp_path / "answers.pt").stat().st_size < 40 * 750 * 8 + 10_000
    again = unpack_answers(torch.load(tmp_path / "answers.pt", weights_only=True))
    assert list(again) == list(answers)
    for number, pair in answers.items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(again[number], pair, strict=True))
    assert unpack_answers(pack_answers({})) == {}
