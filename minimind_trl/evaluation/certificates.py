"""Compare an exported model with its source. Each comparison is an entry of `certificate.json`."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .certificate_texts import certificate_conversations, certificate_texts
from .llama_cpp import LlamaCpp

TEXTS = 10_000
PROMPTS = 200
MAX_NEW_TOKENS = 32
PERPLEXITY_PROMPTS = 20
_BATCH = 100

# Two libraries add float32 numbers in different orders, so logits differ by about 1e-5. Where the best two tokens of
# the source are closer than this, either is right.
NEAR_TIE = 1e-3
MAX_LOG_PROB_DIFFERENCE = 1e-2
# Relative rise of the perplexity from which an export counts as broken.
MAX_PERPLEXITY_RISE = {"f32": 0.001, "f16": 0.01, "bf16": 0.02, "q8_0": 0.05}

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "天气 <now>",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@dataclass
class Comparison:
    """What was compared, how much of it, and what differed.

    Args:
        what: such as "token ids".
        count: things compared.
        equal: those of them that are the same.
        figures: further numbers.
        problem: the first difference in words; None if there is none.
    """

    what: str
    count: int
    equal: int
    figures: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The entry of `certificate.json`."""
        shown = {"what": self.what, "count": self.count, "equal": self.equal, **self.figures}
        return shown if self.problem is None else shown | {"problem": self.problem}

    def line(self) -> str:
        """One line for the terminal."""
        figures = ", ".join(f"{name} {value:g}" for name, value in self.figures.items() if isinstance(value, float))
        return f"{self.what}: {self.equal:,} of {self.count:,} equal{', ' + figures if figures else ''}"


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the libraries that were compared."""
    return {name: version(name) for name in ("minimind-trl", "torch", "transformers", "tokenizers", *packages)}


# --- tokenizer --------------------------------------------------------------------------------------------------------


def compare_tokens(other: LlamaCpp | PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> list[Comparison]:
    """Compare token ids of texts, with control tokens that are spelled out read as such, and read as text."""
    tokenize = other.tokenize if isinstance(other, LlamaCpp) else partial(_tokenize, other)
    texts = list(certificate_texts(tokenizer, TEXTS))
    batches = [texts[start : start + _BATCH] for start in range(0, TEXTS, _BATCH)]
    return [
        _compare(
            f"token ids, control tokens read as {'such' if control_tokens else 'text'}",
            (
                pair
                for batch in batches
                for pair in zip(
                    batch, _tokenize(tokenizer, batch, control_tokens), tokenize(batch, control_tokens), strict=True
                )
            ),
        )
        for control_tokens in (True, False)
    ]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], control_tokens: bool) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=not control_tokens)["input_ids"]


def compare_rendered(other: LlamaCpp | PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> Comparison:
    """Compare the prompts that two chat templates make, with tools and thinking and without."""
    render = other.render if isinstance(other, LlamaCpp) else partial(_render, other)
    return _compare(
        "prompts of the chat template",
        (
            (messages, _render(tokenizer, messages, tools, thinking), render(messages, tools, thinking))
            for messages in (*certificate_conversations(PROMPTS), *_tool_conversations())
            for tools in (None, _TOOLS)
            for thinking in (True, False)
        ),
    )


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None, thinking: bool) -> str:
    options = {"add_generation_prompt": True, "enable_thinking": thinking}
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)


def _tool_conversations() -> list[list[dict]]:
    call = {"type": "function", "id": "call_1", "function": {"name": "get_weather", "arguments": '{"city": "Bonn"}'}}
    answer = {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": 21.5}'}
    asked = [
        {"role": "user", "content": "How warm is it in Bonn?"},
        {"role": "assistant", "tool_calls": [call]},
        answer,
    ]
    asked[1]["content"] = ""
    told = {"role": "assistant", "content": "21.5 °C.", "reasoning_content": "The tool has said it."}
    return [asked, [*asked, told, {"role": "user", "content": "谢谢"}]]


def _compare(what: str, pairs: Iterator[tuple[str, Any, Any]]) -> Comparison:
    """Count equal pairs of (input, expected, found)."""
    found = Comparison(what, 0, 0)
    for given, expected, other in pairs:
        found.count += 1
        if expected == other:
            found.equal += 1
        elif found.problem is None:
            found.problem = f"{given!r} gives {other!r}, not {expected!r}"
    return found


# --- model ------------------------------------------------------------------------------------------------------------


def certificate_prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of prompts: rendered by the chat template, or the last question alone if there is no template."""
    conversations = certificate_conversations(PROMPTS)
    if not tokenizer.chat_template:
        return [tokenizer.encode(messages[-1]["content"], add_special_tokens=False) for messages in conversations]
    rendered = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    return [tokenizer.encode(prompt, add_special_tokens=False) for prompt in rendered]


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Logits of one sequence, in float32.

    Returns:
        `(length, vocabulary)`; row t belongs to token t + 1.
    """
    return model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0].float()


def compare_answers(
    exported: LlamaCpp, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> tuple[Comparison, list[list[int]]]:
    """Compare greedy answers: at every position the model's best token must be the one that llama.cpp wrote.

    Returns:
        the comparison, and each prompt with llama.cpp's answer.
    """
    found, whole, ties, tokens = Comparison("greedy answers", len(prompts), 0), [], 0, 0
    for prompt, answer in zip(prompts, exported.answers(prompts, MAX_NEW_TOKENS), strict=True):
        whole.append([*prompt, *answer])
        tokens += len(answer)
        position, gap = _first_gap(logits_of(model, whole[-1])[len(prompt) - 1 :], answer)
        if gap < NEAR_TIE:
            found.equal += 1
            ties += gap > 0
        elif found.problem is None:
            text = tokenizer.decode(prompt)
            found.problem = f"{text!r}: token {position + 1} differs, with {gap:.3g} between the two logits"
    found.figures = {"tokens": tokens, "near_ties": ties, "near_tie_below": NEAR_TIE}
    return found, whole


def _first_gap(logits: torch.Tensor, ids: list[int]) -> tuple[int, float]:
    """Position of the first token that is not the best one, and how far its logit is below; (length, 0) if all are."""
    for position, token in enumerate(ids):
        gap = float(logits[position].max() - logits[position, token])
        if gap > 0:
            return position, gap
    return len(ids), 0.0


def compare_logits(other: PreTrainedModel, model: PreTrainedModel, prompts: list[list[int]]) -> Comparison:
    """Compare the logits of two models that must agree bit for bit."""
    differences = [float((logits_of(other, ids) - logits_of(model, ids)).abs().max()) for ids in prompts]
    found = Comparison("prompts by their logits", len(prompts), differences.count(0.0))
    found.figures = {"max_difference": max(differences)}
    if found.equal < found.count:
        found.problem = f"logits differ by {max(differences):.3g}"
    return found


def compare_log_probs(
    exported: LlamaCpp, model: PreTrainedModel, sequences: list[list[int]], file_type: str
) -> Comparison:
    """Compare log-probabilities of given tokens, and the perplexity.

    Args:
        sequences: token ids; every token but the first counts.
        file_type: sets what is too much: for f32 of each token's difference, for others of the rise in perplexity.
    """
    own, other = [], []
    for ids in sequences:
        log_probs = logits_of(model, ids).log_softmax(-1)
        own += log_probs[:-1].gather(1, torch.tensor(ids[1:], device=log_probs.device)[:, None])[:, 0].tolist()
        other += exported.log_probs(ids)
    largest = max(abs(a - b) for a, b in zip(own, other, strict=True))
    perplexities = [math.exp(-statistics.fmean(values)) for values in (own, other)]
    rise = perplexities[1] / perplexities[0] - 1
    found = Comparison(
        f"log-probabilities in {file_type}",
        len(own),
        sum(abs(a - b) <= MAX_LOG_PROB_DIFFERENCE for a, b in zip(own, other, strict=True)),
        {
            "equal_within": MAX_LOG_PROB_DIFFERENCE,
            "max_difference": largest,
            "perplexity_of_source": perplexities[0],
            "perplexity_of_file": perplexities[1],
            "perplexity_rise": rise,
            "perplexity_rise_allowed": MAX_PERPLEXITY_RISE[file_type],
        },
    )
    if file_type == "f32" and largest > MAX_LOG_PROB_DIFFERENCE:
        found.problem = f"a log-probability differs by {largest:.3g}; {MAX_LOG_PROB_DIFFERENCE:g} is the limit"
    elif not abs(rise) <= MAX_PERPLEXITY_RISE[file_type]:
        found.problem = f"the perplexity changes by {rise:.2%}; {MAX_PERPLEXITY_RISE[file_type]:.1%} is the limit"
    return found
