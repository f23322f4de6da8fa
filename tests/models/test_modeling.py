"""MiniMind has the features of transformers' own models."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
)
from trl.trainer.utils import disable_dropout_in_model

from minimind_trl.models import (
    MiniMindForCausalLM,
    MiniMindForSequenceClassification,
    MiniMindForTokenClassification,
)
from minimind_trl.models.modeling_minimind import CACHE_NAME, load_balancing_loss, packed_sequences
from tests.conftest import small_config

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 768, shape, generator=torch.Generator().manual_seed(1))


# --- packing ----------------------------------------------------------------------------------------------------------


# flex attention is compiled, which takes half a minute
@pytest.mark.parametrize("implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
@torch.no_grad()
def test_packed_sequences_do_not_attend_to_each_other(kind, implementation, use_cache, with_mask):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(small_config(kind, attn_implementation=implementation)).eval()
    a, b = random_ids(1, 12), random_ids(1, 9)
    packed = torch.cat([a, b], dim=1)
    positions = torch.cat([torch.arange(12), torch.arange(9)])[None]
    mask = torch.ones_like(packed) if with_mask else None
    together = model(packed, position_ids=positions, attention_mask=mask, use_cache=use_cache).logits
    apart = torch.cat([model(a).logits, model(b).logits], dim=1)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@torch.no_grad()
def test_packed_rows_with_padding(model):
    a, b, c = random_ids(1, 5), random_ids(1, 4), random_ids(1, 6)
    rows = torch.zeros(2, 9, dtype=torch.long)
    rows[0], rows[1, :6] = torch.cat([a, b], dim=1)[0], c[0]
    positions = torch.tensor([[*range(5), *range(4)], list(range(9))])
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    logits = model(rows, position_ids=positions, attention_mask=mask).logits
    torch.testing.assert_close(logits[0], torch.cat([model(a).logits, model(b).logits], dim=1)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1, :6], model(c).logits[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_empty_cache_does_not_hide_packing(model):
    packed, positions = random_ids(1, 9), torch.tensor([[*range(5), *range(4)]])
    expected = model(packed, position_ids=positions).logits
    cached = model(packed, position_ids=positions, past_key_values=DynamicCache(config=model.config)).logits
    torch.testing.assert_close(cached, expected)


@pytest.mark.parametrize("name", sorted({"past_key_values", CACHE_NAME}))
@torch.no_grad()
def test_a_cache_is_used_under_the_old_name_and_the_new_one(model, name):
    """transformers 5.24 renamed the argument; a name that nobody reads would go unseen, in the other arguments."""
    ids, cache = random_ids(1, 9), DynamicCache(config=model.config)
    model(ids[:, :6], **{name: cache})
    output = model(ids[:, 6:], **{name: cache})
    assert output[CACHE_NAME] is cache and cache.get_seq_length() == 9
    torch.testing.assert_close(output.logits, model(ids).logits[:, 6:], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("with_mask", [True, False])
@torch.no_grad()
def test_packing_holds_when_compiled(model, with_mask):
    packed, positions = random_ids(1, 9), torch.tensor([[*range(5), *range(4)]])
    mask = torch.ones_like(packed) if with_mask else None
    torch.compiler.reset()  # the graphs of other tests count towards the limit of recompilations
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = model(packed, position_ids=positions, attention_mask=mask).logits
    actual = compiled(packed, position_ids=positions, attention_mask=mask).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_left_padding_is_not_packing():
    positions = torch.tensor([[1, 1, 0, 1, 2]])
    assert packed_sequences(positions, torch.tensor([[0, 0, 1, 1, 1]])) is None
    assert packed_sequences(positions).tolist() == [[0, 1, 2, 2, 2]]


def test_flash_attention_refuses_packed_rows_that_would_leak():
    # A CPU has no flash attention, but the check runs before any kernel on a model that is set to use it.
    model = MiniMindForCausalLM(small_config("dense3")).eval()
    model.config._attn_implementation = "flash_attention_2"
    positions = torch.tensor([[0, 1, 2, 0, 1]]).expand(2, -1)
    with pytest.raises(ValueError, match="one row without padding"):
        model(random_ids(2, 5), position_ids=positions)


# --- generation -------------------------------------------------------------------------------------------------------


def test_generation_paths_agree(model):
    """Dynamic, static and no cache, embeddings instead of ids, assisted decoding: the same greedy answer."""
    ids = random_ids(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    answer = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(answer, model.generate(ids, attention_mask=mask, cache_implementation="static", **GREEDY))
    assert torch.equal(answer, model.generate(ids, attention_mask=mask, use_cache=False, **GREEDY))
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(answer[:, 5:], model.generate(inputs_embeds=embeddings, attention_mask=mask, **GREEDY))
    # left padding changes nothing
    assert torch.equal(answer[0, 5:], model.generate(ids[:1, 2:], **GREEDY)[0, 3:])
    alone = model.generate(ids[1:], **GREEDY)
    assert torch.equal(alone, model.generate(ids[1:], assistant_model=model, **GREEDY))


def test_beam_search_finds_an_answer_at_least_as_likely(model):
    ids = random_ids(1, 5)

    def log_likelihood(sequence):
        log_probs = model(sequence).logits.log_softmax(-1)[:, 4:-1]
        return log_probs.gather(-1, sequence[:, 5:, None]).sum().item()

    greedy = model.generate(ids, **GREEDY)
    beams = model.generate(ids, num_beams=8, length_penalty=0.0, **GREEDY)
    assert log_likelihood(beams) >= log_likelihood(greedy) - 1e-4


# --- training ---------------------------------------------------------------------------------------------------------


def gradients(model, ids) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_trl_can_disable_dropout(kind):
    """TRL's `--disable_dropout` looks for modules."""
    model = MiniMindForCausalLM(small_config(kind, attention_dropout=0.5)).train()
    ids = torch.arange(20)[None]
    expected = model.eval()(ids).logits
    model.train()
    assert not torch.allclose(model(ids).logits, expected)
    disable_dropout_in_model(model)
    torch.testing.assert_close(model(ids).logits, expected)


def test_gradient_checkpointing_gives_the_same_gradients(model):
    model.train()
    plain = gradients(model, random_ids(2, 9))
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, random_ids(2, 9))
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_every_parameter_gets_a_gradient_even_without_tokens_for_its_expert(model):
    """DDP needs a gradient for every parameter; here a single token has four experts."""
    assert all(gradient is not None for gradient in gradients(model.train(), random_ids(1, 2)).values())


@pytest.mark.parametrize("kind", ["moe2", "moe3"], indirect=True)
def test_experts_implementations_agree(model):
    outputs, grads = {}, {}
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model.set_experts_implementation(implementation)
        outputs[implementation] = model.eval()(random_ids(3, 9)).logits
        grads[implementation] = gradients(model.train(), random_ids(3, 9))
    for implementation in ("batched_mm", "grouped_mm"):
        torch.testing.assert_close(outputs[implementation], outputs["eager"])
        torch.testing.assert_close(grads[implementation], grads["eager"])


@pytest.mark.parametrize("kind", ["moe2", "moe3"], indirect=True)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])  # ONNX has no operator for grouped_mm's
@torch.no_grad()
def test_experts_export_for_any_number_of_tokens(model, implementation):
    model.set_experts_implementation(implementation)
    experts = model.eval().model.layers[0].mlp
    states, more = torch.rand(2, 7, 64), torch.rand(3, 9, 64)
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(experts, (states,), dynamic_shapes=shapes)
    torch.testing.assert_close(exported.module()(more), experts(more))


def test_bf16_trains(kind):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(small_config(kind)).to(torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = random_ids(4, 16)
    losses = []
    for _ in range(15):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


# --- auxiliary loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss_type", "balanced"), [("sequence", 1.0), ("token", 1.0), ("global", 2.0)])
def test_load_balancing_loss_of_balanced_and_collapsed_routing(loss_type, balanced):
    """Balanced routing gives the formula's minimum; with all tokens on the same experts it is E / k times as large."""
    config = small_config("moe3", num_experts_per_tok=2, router_aux_loss_type=loss_type)
    even = torch.full((1, 8, 4), -20.0)
    for token in range(8):
        even[0, token, [token % 4, (token + 1) % 4]] = 20.0
    one_sided = torch.full((1, 8, 4), -20.0)
    one_sided[..., :2] = 20.0
    for logits, expected in ((even, balanced), (one_sided, 2 * balanced)):
        loss = load_balancing_loss((logits[0],), config, (1, 8))
        assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss_type", ["sequence", "token", "global"])
def test_the_load_balancing_loss_ignores_padding(loss_type):
    config = small_config("moe3", router_aux_loss_type=loss_type)
    logits = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([logits, torch.full((2, 3, 4), 9.0)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 3] * 2)
    short = load_balancing_loss((logits.reshape(-1, 4),), config, (2, 6))
    long = load_balancing_loss((padded.reshape(-1, 4),), config, (2, 9), mask)
    torch.testing.assert_close(long, short)


@pytest.mark.parametrize("kind", ["moe2", "moe3"], indirect=True)
def test_the_evaluation_loss_is_plain_cross_entropy(model):
    ids = random_ids(2, 9)
    training, evaluation = model.train()(ids, labels=ids), model.eval()(ids, labels=ids)
    assert evaluation.aux_loss is None and evaluation.router_logits is None
    asked = model.eval()(ids, labels=ids, output_router_logits=True)
    weighted = model.config.router_aux_loss_coef * training.aux_loss
    torch.testing.assert_close(training.loss, evaluation.loss + weighted)
    torch.testing.assert_close(asked.loss, training.loss)


def test_logits_come_first_in_a_tuple_of_outputs(model):
    """As in stock models. With router logits, transformers puts the auxiliary loss first."""
    ids = random_ids(2, 9)
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)


# --- heads, embeddings, adapters, compilation -------------------------------------------------------------------------


def test_auto_classes_know_the_models(checkpoints, kind):
    assert type(AutoModelForCausalLM.from_pretrained(checkpoints[kind])) is MiniMindForCausalLM
    reward = AutoModelForSequenceClassification.from_pretrained(checkpoints[kind], num_labels=1)
    value = AutoModelForTokenClassification.from_pretrained(checkpoints[kind], num_labels=1)
    assert type(reward) is MiniMindForSequenceClassification and type(value) is MiniMindForTokenClassification


@torch.no_grad()
def test_rewards_are_of_the_last_token_and_values_of_every_token(checkpoints, kind):
    reward = AutoModelForSequenceClassification.from_pretrained(checkpoints[kind], num_labels=1).eval()
    value = AutoModelForTokenClassification.from_pretrained(checkpoints[kind], num_labels=1).eval()
    ids = random_ids(1, 6)
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    assert reward(ids).logits.shape == (1, 1) and value(ids).logits.shape == (1, 6, 1)
    torch.testing.assert_close(reward(padded, attention_mask=mask).logits, reward(ids).logits)


def test_resized_embeddings_stay_tied_and_reload(model, tmp_path):
    model.resize_token_embeddings(800)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.config.vocab_size == 800
    model.save_pretrained(tmp_path)
    again = MiniMindForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(random_ids(1, 5)).logits, model(random_ids(1, 5)).logits)


def test_lora_trains_saves_reloads_and_merges(model, tmp_path):
    ids = random_ids(4, 12)
    before = model(ids).logits.detach()
    lora = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2)
    first = lora(ids, labels=ids).loss
    for _ in range(5):
        lora(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = lora.eval()(ids, labels=ids)
    assert trained.loss < first - 0.1
    lora.save_pretrained(tmp_path)

    base = lora.unload()
    torch.testing.assert_close(base(ids).logits, before)
    again = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, trained.logits)
    merged = again.merge_and_unload()
    assert type(merged) is MiniMindForCausalLM
    torch.testing.assert_close(merged(ids).logits, trained.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dense3"], indirect=True)
def test_lora_has_default_target_modules(model):
    adapted = {name for name, _ in get_peft_model(model, LoraConfig()).named_modules() if name.endswith("_proj.lora_A")}
    assert {name.split(".")[-2] for name in adapted} == {"q_proj", "v_proj"}


@pytest.mark.slow
@torch.no_grad()
def test_compiled_forward_gives_equal_logits(model):
    ids = random_ids(2, 9)
    torch.compiler.reset()
    # Eager first: transformers installs the hooks that record router logits on the first forward, under a lock that
    # would break the graph.
    expected = model(ids).logits
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiling_before_the_first_forward(model):
    torch.compiler.reset()
    logits = torch.compile(model)(random_ids(2, 9)).logits
    torch.testing.assert_close(logits, model(random_ids(2, 9)).logits, atol=1e-5, rtol=1e-5)
