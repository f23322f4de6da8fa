import copy
import json
import random
import re

import pytest
from transformers import AutoTokenizer
from trl.chat_template_utils import get_training_chat_template, is_chat_template_prefix_preserving

from minimind_trl.tokenization import (
    GENERATIONS,
    ChatTemplateError,
    inference_template,
    prepared_for_engines,
    prepared_for_trl,
    training_template,
    with_training_template,
)

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
AGENT = [
    {"role": "system", "content": "Use tools."},
    {"role": "user", "content": "Warm in Paris?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "A tool knows.",
        "tool_calls": [CALL],
    },
    {"role": "tool", "content": "21"},
    {"role": "tool", "content": "degrees"},
    {"role": "assistant", "content": "是的 🌞, 21 degrees."},
    {"role": "user", "content": "Thanks! assistant\nYes?"},
    {"role": "assistant", "content": "<think>\nPolite.\n</think>\n\nAny time."},
]


def encode(tokenizer, messages, **arguments):
    return tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **arguments)


def assistant_tokens(tokenizer, ids):
    """Mark, from the ids alone, what follows the header of an assistant's turn, up to its end."""
    mask, since_start, inside = [], "", False
    for token in ids:
        mask.append(int(inside))
        text = tokenizer.decode([token])
        if inside:
            inside = text != "<|im_end|>"
            continue
        since_start = "" if text == "<|im_start|>" else since_start + text
        inside = since_start == "assistant\n"
    return mask


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


# ----- the same text as upstream


def test_upstreams_renderings_are_reproduced(upstream_dir, upstream):
    rows = [json.loads(line) for line in (upstream_dir / "rendered.jsonl").read_text("utf-8").splitlines()]
    for tokenizer in (upstream, with_training_template(upstream)):
        for row in rows:
            arguments = {"tools": row.get("tools"), **row.get("kwargs", {})}
            assert tokenizer.apply_chat_template(row["messages"], tokenize=False, **arguments) == row["text"]
            assert tokenizer.apply_chat_template(row["messages"], **arguments)["input_ids"] == row["input_ids"]


def random_conversation(rng):
    pieces = [
        "<think>",
        "</think>",
        "\n",
        "\n\n",
        " ",
        "x",
        "为",
        "<tool_response>",
        "</tool_response>",
        "<|im_end|>",
    ]

    def text():
        return "".join(rng.choices(pieces, k=rng.randrange(7)))

    def call():
        call = {"name": text(), "arguments": rng.choice([text(), {text(): [1.5, text(), None]}, {}, [], 3])}
        return call if rng.random() < 0.5 else {"type": "function", "function": call}

    def message():
        role = rng.choice(["system", "user", "assistant", "assistant", "tool", "tool", "critic"])
        message = {"role": role, "content": rng.choice([text(), text(), text(), None, 7, [{"text": text()}]])}
        if rng.random() < 0.4:
            message[rng.choice(["reasoning_content", "thinking"])] = rng.choice([text(), text(), ["no text"]])
        if rng.random() < 0.4:
            message["tool_calls"] = [call() for _ in range(rng.randrange(4))]
        return message

    arguments = {}
    if rng.random() < 0.4:
        arguments["tools"] = [{"name": text(), "parameters": {text(): text()}} for _ in range(rng.randrange(3))]
    for name in ("add_generation_prompt", "open_thinking", "enable_thinking"):
        if rng.random() < 0.5:
            arguments[name] = rng.choice([True, False])
    return [message() for _ in range(rng.randrange(6))], arguments


def outcome(tokenizer, messages, arguments, template):
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template, **arguments)
    except Exception as error:  # what the original refuses, the twin shall refuse in the same way
        return type(error)


def test_twin_and_inference_template_render_like_the_original_whatever_comes(upstream_dir, upstream):
    rng, texts = random.Random(0), 0
    for _ in range(1500):
        messages, arguments = random_conversation(rng)
        expected = outcome(upstream, messages, arguments, None)
        texts += isinstance(expected, str)
        for template in (training_template(upstream_dir.name), inference_template(upstream_dir.name)):
            assert outcome(upstream, messages, arguments, template) == expected, (messages, arguments)
    assert texts > 1000


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_inference_template_is_the_twin_without_markers(trained, generation):
    assert "generation %}" in training_template(generation)
    assert "generation %}" not in inference_template(generation)
    for template in (training_template(generation), inference_template(generation)):
        assert outcome(trained, AGENT, {}, template) == outcome(trained, AGENT, {}, training_template(generation))


def test_unknown_generation():
    with pytest.raises(ValueError, match="unknown MiniMind generation 'minimind4': choose one of minimind2, minimind3"):
        training_template("minimind4")


# ----- the assistant's tokens


def test_the_mask_covers_exactly_the_assistants_turns(shipped):
    tokenizer = with_training_template(shipped)
    encoded = encode(tokenizer, AGENT, tools=[{"name": "weather"}])
    assert encoded["assistant_masks"] == assistant_tokens(tokenizer, encoded["input_ids"])
    assert sum(encoded["assistant_masks"]) > 0


def test_the_mask_holds_reasoning_tool_calls_and_the_end_of_the_turn(trained):
    tokenizer = with_training_template(trained)
    encoded = encode(tokenizer, AGENT[:3])
    ids = [token for token, mine in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mine]
    assert tokenizer.decode(ids) == (
        "<think>\nA tool knows.\n</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
    )


def test_the_mask_of_a_padded_batch(shipped):
    tokenizer = with_training_template(shipped)
    encoded = encode(tokenizer, [AGENT, AGENT[1:2] + AGENT[5:6]], padding=True, return_tensors="np")
    for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
        assert mask.tolist() == assistant_tokens(tokenizer, ids.tolist())


def test_upstreams_masks(upstream):
    encoded = encode(with_training_template(upstream), AGENT, tools=[{"name": "weather"}])
    assert encoded["assistant_masks"] == assistant_tokens(upstream, encoded["input_ids"])


# ----- which template gets which twin


def test_the_tokenizer_itself_is_left_alone(shipped):
    before = shipped.chat_template
    twin = with_training_template(shipped)
    assert shipped.chat_template == before
    assert twin.chat_template != before
    assert twin.get_vocab() == shipped.get_vocab()


def test_a_copy_with_other_whitespace_and_comments_is_recognised(shipped):
    edited = "{# mine #}\n" + re.sub(r"^ +", "\t ", shipped.chat_template, flags=re.MULTILINE) + "{#- end #}\n"
    twin = with_training_template(with_template(shipped, edited))
    assert twin.chat_template == with_training_template(shipped).chat_template


def test_upstreams_own_template_is_recognised(upstream_dir, upstream):
    assert with_training_template(upstream).chat_template == training_template(upstream_dir.name)


LITERAL = r"'(?:[^'\\]|\\.)*'"
STRIP = r"\.l?strip\('\\n'\)"
CONDITION = r"(?<=if )[^%}]+?(?= else| %}| }})"


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [(LITERAL, "'§'"), (STRIP, ""), (CONDITION, "true"), (r"loop\.(first|last)", "false")],
    ids=["literals", "strips", "conditions", "loop"],
)
def test_every_piece_of_the_template_matters_to_some_probe(trained, generation, pattern, replacement):
    template = inference_template(generation)
    for piece in re.finditer(pattern, template):
        changed = template[: piece.start()] + replacement + template[piece.end() :]
        with pytest.raises(ChatTemplateError):
            with_training_template(with_template(trained, changed))
            pytest.fail(f"nobody notices {piece.group()} -> {replacement}")


def test_an_unknown_template_is_refused_with_the_first_difference(trained):
    changed = inference_template("minimind3").replace("</tool_response>", "</answer>")
    with pytest.raises(ChatTemplateError) as error:
        with_training_template(with_template(trained, changed))
    message = str(error.value)
    assert 'for the probe "tool answers" it renders' in message
    assert "</answer>" in message and "</tool_response>" in message
    assert "minimind3, the nearest known template (3 of 29 probes differ)" in message
    assert "put {% generation %} and {% endgeneration %} around" in message


def test_no_template_is_refused(trained):
    with pytest.raises(ChatTemplateError, match=r"has no chat template: set tokenizer\.chat_template"):
        with_training_template(with_template(trained, None))


def test_a_template_with_markers_of_its_own_is_kept(trained):
    own = (
        "{% for m in messages %}{{ m.role + ':' }}{% generation %}{{ m.content + '<|im_end|>' }}"
        "{% endgeneration %}{% endfor %}"
    )
    assert with_training_template(with_template(trained, own)).chat_template == own


def test_markers_that_leave_out_the_end_of_the_turn_are_refused(trained):
    own = (
        "{% for m in messages %}{{ m.role + ':' }}{% generation %}{{ m.content }}{% endgeneration %}"
        "{{ '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(ChatTemplateError, match="would train a model that never stops"):
        with_training_template(with_template(trained, own))


def test_a_minimind_template_with_such_markers_gets_the_twin(trained):
    own = training_template("minimind3").replace(
        "{{- '<|im_end|>' }}\n        {%- endgeneration %}", "{%- endgeneration %}{{- '<|im_end|>' }}"
    )
    assert own != training_template("minimind3")
    assert with_training_template(with_template(trained, own)).chat_template == training_template("minimind3")


def test_a_stock_template_gets_trls_twin(trained):
    from trl.chat_template_utils import qwen3_chat_template, qwen3_training_chat_template

    twin = with_training_template(with_template(trained, qwen3_chat_template))
    assert twin.chat_template == qwen3_training_chat_template
    assert with_training_template(twin).chat_template == qwen3_training_chat_template


# ----- in TRL


def test_sft_trains_exactly_the_assistants_turns(shipped, tmp_path):
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = with_training_template(shipped)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    rows = Dataset.from_list([{"messages": AGENT[:2] + AGENT[5:]}, {"messages": AGENT[6:]}])
    trainer = SFTTrainer(
        model=Qwen3ForCausalLM(config),
        args=SFTConfig(
            output_dir=tmp_path,
            assistant_only_loss=True,
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_length=None,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["labels"]) == 2
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        expected = assistant_tokens(tokenizer, ids)
        assert labels == [token if mine else -100 for token, mine in zip(ids, expected, strict=True)]
        assert tokenizer.eos_token_id in labels


# --- what is saved ---

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}


def test_a_saved_tokenizer_brings_what_trl_asks_for(shipped, tmp_path):
    before = shipped.chat_template
    prepared_for_trl(shipped).save_pretrained(tmp_path)
    assert shipped.chat_template == before
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert get_training_chat_template(saved) is None and is_chat_template_prefix_preserving(saved)
    assert prepared_for_engines(saved).chat_template == before


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "Yes.\n\nNo."},
        {"content": "Let me see.", "tool_calls": [CALL, CALL]},
        {"content": "", "tool_calls": [CALL]},
    ],
)
def test_an_answer_is_read_back_into_the_message_it_was_rendered_from(shipped, turn, tmp_path):
    prepared_for_trl(shipped).save_pretrained(tmp_path)
    tokenizer, question = AutoTokenizer.from_pretrained(tmp_path), [{"role": "user", "content": "?"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*question, {"role": "assistant", **turn}], tokenize=False)
    assert whole.startswith(prompt)
    read = tokenizer.parse_response(whole.removeprefix(prompt), prefix=prompt)
    assert read == {"role": "assistant"} | {name: value for name, value in turn.items() if value}


def test_a_template_of_another_kind_is_saved_as_it_is(trained):
    other = copy.deepcopy(trained)
    for template in ("{{ messages[0].content }}", None):
        other.chat_template = template
        assert prepared_for_trl(other) is other and prepared_for_engines(other) is other
