"""A policy that seldom calls a tool learns to call it, and to trust its result."""

import random

import pytest
import torch

from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.rewards import load_rewards
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.tools import tool_schemas
from tests.trainers.online import METHODS, bandit_model, online, prompts

COINS = ("heads", "tails")
QUESTION = prompts(1)[0]["prompt"]


def coin() -> str:
    """Toss a coin."""
    return random.choice(COINS)


def chats() -> list[list[dict]]:
    """Of four chats one tosses the coin, and the others guess; not all that toss it say what they see."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "coin", "arguments": {}}}]}
    guesses = [[{"role": "assistant", "content": side}] for side in COINS]
    tosses = [
        [call, {"role": "tool", "content": shown}, {"role": "assistant", "content": said}]
        for shown in COINS
        for said in (shown, shown, *COINS)
    ]
    return [QUESTION + turns for turns in (*tosses, *guesses * 12)]


def taught(tokenizer) -> MiniMindForCausalLM:
    """A policy that does as the chats do."""
    tokenizer.padding_side = "right"
    options = {"tools": tool_schemas([coin]), "return_dict": True, "return_tensors": "pt", "padding": True}
    batch = tokenizer.apply_chat_template(chats(), **options)
    model = bandit_model(max_position_embeddings=1024)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        rows = torch.randint(len(batch["input_ids"]), (6,))
        ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows]
        model(ids, mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_policy_learns_to_call_a_tool(tmp_path, method):
    random.seed(0)
    [result_match], _ = load_rewards(["result_match"])
    questions = prompts(1).select([0] * 64)
    trainer = online(
        method,
        tmp_path,
        taught(tiny_tokenizer()),
        result_match,
        tools=[coin],
        rows=questions,
        held_out=questions,
        eval_temperature=1.0,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        max_completion_length=100,
        max_steps=16,
        learning_rate=5e-4,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_tools/calls"] < 0.75 and after["eval_tools/calls"] > 0.85
    # A share of 64 answers has a standard error of at most 0.063.
    assert before["eval_reward"] < 0.35 and after["eval_reward"] > before["eval_reward"] + 0.2
