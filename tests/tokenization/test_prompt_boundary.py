"""A tokenizer that splits the end of a generation prompt otherwise once an answer follows: found, named, refused."""

import copy
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minimind_trl.tokenization import compare_prompts, inference_template, tiny_tokenizer, with_training_template
from minimind_trl.tokenization.tokenizer_training import PLAIN_ADDED_TOKENS, SPECIAL_TOKENS

CASES = Path(__file__).resolve().parents[2] / ".." / "shared" / "cases"


@pytest.fixture(scope="module")
def own() -> PreTrainedTokenizerFast:
    """As people train one with the usual lines: GPT-2's words, and two line ends that became one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    added = [*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS]
    size = len(added) + 256 + 8
    bpe.train_from_iterator(
        ["a cat\n\n", "a dog\n  x"] * 9,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=added,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=inference_template("minimind3"),
    )


def chat(*answers: str, **fields) -> dict:
    turns = [
        turn
        for answer in answers
        for turn in ({"role": "user", "content": "?"}, {"role": "assistant", "content": answer, **fields})
    ]
    return {"messages": turns}


def rendered(tokenizer, *answers: str) -> str:
    return tokenizer.apply_chat_template(chat(*answers)["messages"], tokenize=False)


def row(phase: str, answer: str, tokenizer) -> dict:
    turns = chat(answer)["messages"]
    return {
        "text": {"text": f"A book. {rendered(tokenizer, answer)}"},
        "messages": {"messages": turns, "tools": None},
        "pair": {"prompt": turns[:1], "chosen": turns[1:], "rejected": turns[1:], "tools": json.dumps([{"name": "f"}])},
        "prompt": {"prompt": turns[:1], "answer": answer},
        "rendered prompt": {
            "prompt": tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True),
            "messages": turns[:1],
            "answer": answer,
        },
    }[phase]


@pytest.mark.parametrize("phase", ["text", "messages", "pair", "prompt", "rendered prompt"])
def test_the_token_is_named_in_rows_of_every_phase(own, phase):
    both = own.convert_tokens_to_ids("ĊĊ")
    [problem] = compare_prompts([row(phase, "cat", own)], own).problems()
    assert f"the prompt ends in '\\n\\n' ({both}), the row has '\\n' (" in problem
    assert "take a tokenizer whose line ends are tokens of their own" in problem
    assert compare_prompts([row(phase, " cat", own)], own).problems() == []
    fine = compare_prompts([row(phase, "cat", tiny_tokenizer())], tiny_tokenizer())
    assert fine.problems() == fine.warnings() == [] and fine.answers == (2 if phase == "pair" else 1)


def test_a_number_is_an_answer_too(own):
    prompt = [{"role": "user", "content": "?"}]
    assert compare_prompts([{"prompt": prompt, "answer": 42}], own).split_otherwise == 1
    assert compare_prompts([{"prompt": prompt}], own).answers == 0


def test_every_turn_is_an_answer(own):
    found = compare_prompts([chat(" cat", "cat", " dog")], own)
    assert (found.answers, found.split_otherwise) == (3, 1)
    found = compare_prompts([{"text": rendered(own, "cat", " cat", "dog")}], own)
    assert (found.answers, found.split_otherwise) == (3, 2)


def test_a_few_such_answers_are_told_and_no_reason_to_stop(own):
    found = compare_prompts([*[chat(" cat")] * 95, *[chat("cat")] * 5], own)
    assert found.problems() == []
    [warning] = found.warnings()
    assert "before 5 of 100 answers" in warning
    found = compare_prompts([chat(" cat"), chat("cat")], own)
    assert "before 1 of 2 answers" in found.problems()[0] and not found.warnings()


def test_reasoning_is_compared_with_the_open_prompt(own):
    found = compare_prompts([chat("cat", reasoning_content="hm")], own)
    assert (found.answers, found.split_otherwise, found.written_otherwise) == (1, 0, 1)
    assert found.problems() == []
    assert "ask this model with open_thinking=True" in found.warnings()[0]
    assert compare_prompts([chat("cat", reasoning_content="  hm")], own).split_otherwise == 1
    mixed = compare_prompts([chat(" cat"), chat("cat", reasoning_content="hm")], own)
    assert mixed.warnings() == []
    text = own.apply_chat_template(chat("a", reasoning_content="hm")["messages"], tokenize=False)
    found = compare_prompts([{"text": text}], own)
    assert (found.answers, found.written_otherwise) == (1, 1)


def test_the_other_generations_prompt(own):
    """It ends in one line end, which merges with what an answer is indented by."""
    second = copy.deepcopy(own)
    second.chat_template = inference_template("minimind2")
    assert compare_prompts([chat("cat"), chat(" cat")], second).split_otherwise == 0
    twin = with_training_template(second)
    assert compare_prompts([chat("cat")], twin).answers == 1


def test_nothing_to_compare(own):
    assert compare_prompts([{"text": "<|im_start|>assistant\n is spelled here"}], own).answers == 0
    plain = copy.deepcopy(own)
    plain.chat_template = None
    assert compare_prompts([{"text": "Once"}], plain).answers == 0


def test_the_case_that_was_learned_and_not_answered(own):
    """Held-out loss 0.002, and no right answer, with a tokenizer that is as the shipped one was."""
    if not CASES.is_dir():
        pytest.skip("needs the cases in ../shared, which are not part of the project")
    lines = (CASES / "tokenizer-boundary" / "nospace.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert compare_prompts(rows, own).split_otherwise == len(rows)
    assert compare_prompts(rows, tiny_tokenizer()).split_otherwise == 0


def test_upstreams_tokenizers_merge_before_indented_answers_only(upstream):
    answers = ["Yes", " Yes", "是", "7", "```py", "<tool_call>"]
    found = compare_prompts(map(chat, answers), upstream)
    assert (found.answers, found.split_otherwise) == (len(answers), 0)
    [problem] = compare_prompts([chat("    return 1")], upstream).problems()
    assert "merges the end of the generation prompt with the white space that 1 of 1 answers begin with" in problem
    assert "strip that white space" in problem
