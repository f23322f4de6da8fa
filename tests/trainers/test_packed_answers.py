"""Packed answers: the figures and gradients of the padded batch, from fewer tokens."""

import copy

import pytest
import torch

from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.trainers import add_learned_positions_head
from minimind_trl.trainers.critic import attach_critic, make_critic
from minimind_trl.trainers.packed_answers import pack_answers
from tests.conftest import small_config

PAD = 0


def batch(prompts: list[list[int]], answers: list[list[int]]) -> dict[str, torch.Tensor]:
    """Left-padded prompts with right-padded answers, as in GRPOTrainer."""
    width, length = max(map(len, prompts)), max(map(len, answers))
    rows = [
        [PAD] * (width - len(prompt)) + prompt + answer + [PAD] * (length - len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    ids = torch.tensor(rows)
    labels = ids.masked_fill(ids == PAD, -100)
    labels[:, :width] = -100
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def group_of_answers(count: int = 8) -> dict[str, torch.Tensor]:
    """Two prompts of unlike length, each with answers of 1 to 9 tokens."""
    prompts = [[5, 6, 7], list(range(20, 40))]
    answers = [[9 + n] * (1 + n) for n in range(count)]
    return batch([prompt for prompt in prompts for _ in answers], answers * 2)


def pack(inputs: dict[str, torch.Tensor]):
    return pack_answers(inputs["input_ids"], inputs["attention_mask"], inputs["labels"] != -100)


def test_a_group_shares_its_prompt():
    inputs = group_of_answers(5)
    packed = pack(inputs)
    assert (packed.input_ids > 0).sum() == 3 + 20 + 2 * sum(range(1, 6))  # both prompts once, and all answers


def test_an_answer_sees_its_prompt_and_itself_only():
    packed = pack(batch([[5, 6]] * 3 + [[7]] * 30, [[8, 9], [10], [11], *[[12]] * 30]))
    seen = [packed.attention_mask[0, 0, place].nonzero().flatten().tolist() for place in range(8)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 5], [6], [6, 7]]
    assert packed.position_ids[0, :8].tolist() == [0, 1, 2, 3, 2, 2, 0, 1]


def test_rows_are_as_long_as_the_longest_given_one_and_prompts_are_repeated_where_they_do_not_fit():
    packed = pack(batch([list(range(1, 601))] * 4, [[7] * 300, [8] * 100, [9] * 100, [10] * 100]))
    assert packed.input_ids.shape == (2, 900)


def test_rows_are_longer_where_a_long_prompt_is_then_read_once():
    packed = pack(batch([list(range(1, 61))] * 4, [[7] * 40, [8] * 10, [9], [10] * 20]))
    assert packed.input_ids.shape == (1, 131)


def test_a_full_batch_and_an_answer_without_a_prompt_are_left_alone():
    assert pack(batch([[n] * 60 for n in range(1, 5)], [[9] * 4] * 4)) is None
    inputs = batch([[1]] * 8, [[2] * 9] * 8)
    inputs["labels"][0, 0] = 1
    assert pack(inputs) is None


@pytest.mark.parametrize("kind", ["dense2", "dense3", "moe2", "moe3"])
def test_log_probabilities_values_and_gradients_are_those_of_the_padded_batch(kind):
    inputs = group_of_answers()
    assert pack(inputs) is not None
    torch.manual_seed(0)
    padded = MiniMindForCausalLM(small_config(kind))
    packed = copy.deepcopy(padded)
    results = []
    for model in (padded, packed):
        critic = make_critic(model, None)
        torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(1))
        add_learned_positions_head(model, 0.7, entropy_gradient=True, pack=model is packed)
        attach_critic(model, critic)
        if model is padded:
            critic.config._attn_implementation = "eager"  # whose masks are not packed
        outputs = model(**inputs, fused_lm_head=True)
        answered = inputs["labels"][:, 1:] != -100
        values = outputs.token_values[:, :-1][answered]
        loss = outputs.log_probs.mean() + 0.3 * outputs.entropy.mean() + values.square().mean()
        loss.backward()
        results.append((outputs, values, [part.grad for part in model.parameters()]))
    (expected, values, gradients), (outputs, our_values, our_gradients) = results
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(outputs[name], expected[name], atol=3e-5, rtol=1e-5, msg=name)
    torch.testing.assert_close(our_values, values, atol=3e-5, rtol=1e-5)
    for ours, theirs in zip(our_gradients, gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-5 + 1e-4 * theirs.norm()


def test_the_last_layer_computes_only_what_is_read_unless_it_is_computed_again():
    sizes = []
    for checkpointing in (False, True):
        model = MiniMindForCausalLM(small_config("dense3")).train()
        add_learned_positions_head(model, pack=True)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.model.layers[-1].mlp.gate_proj.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape))
        outputs = model(**group_of_answers(), fused_lm_head=True)
        (-outputs.log_probs.sum()).backward()
        assert "forward" not in vars(model.model.layers[-1].mlp)
    assert sizes[0] == (len(pack(group_of_answers()).read), 64) and len(sizes[1]) == 3


def test_the_balancing_loss_is_that_of_the_given_rows():
    inputs = group_of_answers()
    padded = MiniMindForCausalLM(small_config("moe2"))
    packed = copy.deepcopy(padded)
    for model in (padded, packed):
        add_learned_positions_head(model, pack=model is packed)
    losses = [model(**inputs, fused_lm_head=True, output_router_logits=True).aux_loss for model in (padded, packed)]
    assert losses[0] == losses[1] > 0
