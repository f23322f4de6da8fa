"""What recipe.json records of the rows, for the doctor."""

from types import SimpleNamespace

import pytest

from minimind_trl.run.row_checks import row_checks
from minimind_trl.tokenization import tiny_tokenizer


def run_with(rows: list[dict], tokenizer=None, **config) -> SimpleNamespace:
    """What `row_checks` reads of a run."""
    on_long = config.pop("on_long", "cut")
    args = {"from_weight": None, "tokenizer": None, "chat_template": None} | config.pop("args", {})
    return SimpleNamespace(
        data={"train": rows},
        tokenizer=tokenizer or tiny_tokenizer(),
        config=SimpleNamespace(**{"max_length": 40, "assistant_only_loss": True} | config),
        mixer=SimpleNamespace(on_long=on_long),
        args=SimpleNamespace(**args),
    )


def chat(words: int) -> dict:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "me " * words}]
    return {"messages": turns, "source": "mine"}


def test_conversations_that_are_cut_lose_their_end():
    rows = [chat(1)] + [chat(60)] * 3
    assert row_checks(run_with(rows)) == {"rows_cut": 0.75, "rows_with_end": 0.25}
    assert row_checks(run_with(rows, on_long="drop")) == {"rows_cut": 0.0, "rows_with_end": 1.0}
    assert row_checks(run_with(rows, on_long="chunk")) == {"rows_cut": 0.0, "rows_with_end": 1.0}
    assert row_checks(run_with([chat(60)], on_long="drop")) == {}


@pytest.mark.parametrize(("rejected", "similarity"), [("a b c d", 1.0), ("a b x d", 0.75), ("no idea at all", 0.0)])
def test_the_similarity_of_two_answers(rejected, similarity):
    def says(text):
        return [{"role": "assistant", "content": text}]

    row = {"prompt": [{"role": "user", "content": "?"}], "chosen": says("a b c d"), "rejected": says(rejected)}
    checks = row_checks(run_with([row] * 3))
    assert checks["answer_similarity"] == pytest.approx(similarity, abs=0.15)


def test_another_chat_template_than_that_of_the_start(checkpoints):
    start = str(checkpoints["dense3"])
    own, other = tiny_tokenizer(), tiny_tokenizer()
    other.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    rows = [{"prompt": [{"role": "user", "content": "?"}]}]

    def check(of_run, **args):
        return row_checks(run_with(rows, of_run, args={"from_weight": start, **args}))

    assert check(own) == {}
    assert check(own, tokenizer="elsewhere") == {"other_template": False}
    assert check(other, chat_template="...") == {"other_template": True}
