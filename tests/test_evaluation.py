"""The yardstick itself."""

import pytest

from minimind_trl.evaluation import exact_match_by_skill, position_score
from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import small_config


@pytest.mark.parametrize(
    ("completion", "score"),
    [("a b c d", 1.0), (" a  b c d\n", 1.0), ("a c b d", 0.5), ("a b", 0.5), ("a b c d e", 0.8), ("", 0.0)],
)
def test_position_score(completion, score):
    assert position_score(completion, "a b c d") == score


def test_scores_are_kept_per_skill(monkeypatch):
    rows = [
        {
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}],
            "answer": answer,
            "skill": skill,
        }
        for skill, answer in (("copy", "cat dog"), ("copy", "hen"), ("sort", "1 2"))
    ]
    monkeypatch.setattr("minimind_trl.evaluation.generate_answers", lambda *_, **__: ["cat dog", "fox", "1 3"])
    scores = exact_match_by_skill(None, tiny_tokenizer(), rows)
    assert scores["copy"] == {"exact_match": 0.5, "position_score": 0.5, "prompts": 2}
    assert scores["sort"] == {"exact_match": 0.0, "position_score": 0.5, "prompts": 1}
    assert list(scores)[-1] == "all" and scores["all"]["prompts"] == 3


def test_answers_do_not_depend_on_the_batch():
    """Left padding: a prompt is answered the same alone and beside a longer one."""
    from minimind_trl.evaluation import generate_answers

    model = MiniMindForCausalLM(small_config("dense3"))
    prompts = [[{"role": "user", "content": text}] for text in ("copy: cat", "reverse: red dog cat hen fox pie")]
    together = generate_answers(model, tiny_tokenizer(), prompts, 6)
    assert together == [generate_answers(model, tiny_tokenizer(), [prompt], 6)[0] for prompt in prompts]
