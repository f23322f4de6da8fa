"""The decoding loop for CPUs, compared with transformers' own."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList
from transformers.integrations.neftune import neftune_post_forward_hook

from minimind_trl.models import MiniMindForCausalLM, decoding
from minimind_trl.models.decoder import Decoder
from minimind_trl.models.decoding import can_sample, sample
from tests.conftest import small_config

END = 2
LENGTHS = torch.tensor([1, 9, 90, 4, 30])  # of the completions: rows end at different times, one long after the others


class EndsAtItsLength(LogitsProcessor):
    """Ends a row after as many new tokens as the id of its prompt's last token; other ids below 100 never come."""

    supports_continuous_batching = True

    def __call__(self, ids, scores):
        said = torch.isin(ids, LENGTHS).flip(1).int().argmax(1, keepdim=True)
        due = said[:, 0] >= ids.flip(1).gather(1, said)[:, 0] - 1
        scores = scores.index_fill(1, torch.arange(100), -torch.inf)
        end = torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([END]), 0)
        return torch.where(due[:, None], end, scores)


def prompts(shared: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts of 5, 10 and 12 tokens behind `shared` tokens that all begin with."""
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(100, 768, (5, 12 + shared), generator=draws)
    mask = torch.ones_like(ids)
    mask[0, :7] = mask[3, :2] = 0
    beginning = torch.randint(100, 768, (shared,), generator=draws)
    for row, padding in zip(ids, (12 + shared - mask.sum(1)).tolist(), strict=True):
        row[padding : padding + shared] = beginning
    ids[:, -1] = LENGTHS
    return ids, mask


def generate(model, custom, shared: int = 0, **options) -> torch.Tensor:
    ids, mask = prompts(shared)
    config = GenerationConfig(max_new_tokens=100, eos_token_id=END, pad_token_id=0, **options)
    ends = LogitsProcessorList([EndsAtItsLength()])
    return model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=ends, custom_generate=custom
    )


@pytest.fixture
def random_model(kind):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(small_config(kind)).eval()
    for parameter in model.parameters():  # so that the most likely token stands out
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return model


@pytest.fixture(params=["paged", "static"])
def engine(request, monkeypatch):
    """The engine of CPUs, then that of GPUs without the graph."""
    if request.param == "static":
        static = replace(decoding._ENGINES["cuda"], step=decoding._eager_step, slots=64)
        monkeypatch.setitem(decoding._ENGINES, "cpu", static)
    return request.param


def test_greedy_answers_equal_those_of_transformers(random_model, engine):
    expected = generate(random_model, None, do_sample=False)
    torch.testing.assert_close(generate(random_model, sample, do_sample=False), expected)
    assert (expected[:, 12:] == END).int().argmax(1).tolist() == (LENGTHS - 1).tolist()


def test_an_answer_that_ends_makes_room_for_the_next_prompt(random_model, engine, monkeypatch):
    monkeypatch.setattr(decoding, "_TOKENS_READ", 20)  # so that prompts are read when they are needed
    expected = generate(random_model, None, do_sample=False)
    torch.testing.assert_close(generate(random_model, partial(sample, slots=2), do_sample=False), expected)


def test_a_beginning_that_all_prompts_share_is_read_once(random_model, monkeypatch):
    read, hidden_states = [], Decoder.hidden_states

    def counted(self, tokens, *rest):
        read.append(len(tokens))
        return hidden_states(self, tokens, *rest)

    monkeypatch.setattr(Decoder, "hidden_states", counted)
    answers = generate(random_model, sample, shared=40, do_sample=False)
    assert read[:2] == [40, 51]
    torch.testing.assert_close(answers, generate(random_model, None, shared=40, do_sample=False))


def test_noise_for_updates_does_not_reach_answers(random_model):
    expected = generate(random_model, sample, do_sample=False)
    embeddings = random_model.model.embed_tokens
    embeddings.neftune_noise_alpha = 100.0
    hook = embeddings.register_forward_hook(neftune_post_forward_hook)
    random_model.train()
    answers = generate(random_model, sample, do_sample=False)
    random_model.eval()
    hook.remove()
    torch.testing.assert_close(answers, expected)


def test_an_adapter_is_applied(random_model):
    plain = generate(random_model, sample, do_sample=False)
    adapted = get_peft_model(random_model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    heard = generate(adapted, sample, do_sample=False)
    assert not torch.equal(heard, plain)
    torch.testing.assert_close(heard, generate(adapted, None, do_sample=False))


def test_a_llama_with_biases():
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, vocab_size=800, attention_bias=True)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) / 4)
    torch.testing.assert_close(generate(model, sample, do_sample=False), generate(model, None, do_sample=False))


def test_answers_are_drawn_from_the_same_distribution(random_model):
    """Two thousand samples of the second token, after a sampled first one, agree within chance."""
    ids = torch.arange(100, 108).repeat(2000, 1)
    config = GenerationConfig(max_new_tokens=2, do_sample=True, temperature=0.7, top_k=8, pad_token_id=0)
    torch.manual_seed(0)
    drawn = random_model.generate(input_ids=ids, generation_config=config, custom_generate=sample)[:, 8:]
    with torch.no_grad():
        first = (random_model(ids[:1]).logits[0, -1] / 0.7).topk(8)
        after = random_model(torch.cat([ids[:8], first.indices[:, None]], 1)).logits[:, -1] / 0.7
    for token, probability, logits in zip(first.indices, first.values.softmax(0), after, strict=True):
        seconds = drawn[drawn[:, 0] == token, 1]
        assert abs(len(seconds) - 2000 * probability) < 4 * (2000 * probability).sqrt() + 1
        best = logits.topk(8)
        for second, share in zip(best.indices, best.values.softmax(0), strict=True):
            expected = len(seconds) * share
            assert abs((seconds == second).sum() - expected) < 4 * expected.sqrt() + 2
        assert torch.isin(seconds, best.indices).all()


@pytest.mark.parametrize("draw", [decoding.draw_by_inversion, decoding.draw_by_race])
def test_tokens_are_drawn_by_their_probabilities(draw):
    torch.manual_seed(0)
    scores = torch.full((200,), -torch.inf)
    scores[::5] = torch.randn(40) * 2
    count = 20_000
    seen = torch.bincount(draw(scores.expand(count, -1)), minlength=200)
    wanted = scores.softmax(-1) * count
    assert not seen[wanted == 0].any()
    likely = wanted > 5
    chi_squared = ((seen - wanted)[likely] ** 2 / wanted[likely]).sum()
    degrees = likely.sum()
    assert chi_squared < degrees + 4 * (2 * degrees) ** 0.5


def test_answers_depend_on_the_seed(random_model):
    def drawn(seed):
        torch.manual_seed(seed)
        return generate(random_model, sample, do_sample=True)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_the_weights_are_unchanged_afterwards(random_model):
    before = {name: tensor.clone() for name, tensor in random_model.state_dict().items()}
    expected = random_model(prompts()[0]).logits
    generate(random_model, sample, do_sample=True)
    after = random_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(random_model(prompts()[0]).logits, expected)


def test_products_under_autocast_have_its_dtype(random_model):
    with torch.autocast("cpu", torch.bfloat16):
        said = generate(random_model, sample, do_sample=False)
        expected = generate(random_model, None, do_sample=False)
    first = said[:, 12] == expected[:, 12]
    assert first.float().mean() >= 0.8  # rounding may flip a near tie
    assert (said == END).int().argmax(1).tolist() == (expected == END).int().argmax(1).tolist()


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"penalty_alpha": 0.6, "top_k": 4}, {"cache_implementation": "static"}]
)
def test_unsupported_modes_are_left_to_transformers(kind, options):
    assert can_sample(small_config(kind), GenerationConfig(do_sample=True))
    assert not can_sample(small_config(kind), GenerationConfig(**options))
