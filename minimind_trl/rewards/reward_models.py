"""Reward models as reward functions."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from ..errors import CheckpointError, InputError, one_line
from ..models import MiniMindForSequenceClassification, load_model
from ..models.adapters import Adapter, adapter_chain
from ..models.checkpoints import OWN_TYPES, architecture_of, load_tokenizer_of, vocabulary_size
from ..models.cpu_kernels import use_cpu_kernels
from ..models.stored import UNREADABLE, check_finite, is_native_file, read_config, without_load_report
from .reward import answer_of, text_of

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class RewardModel:
    """Scores of a sequence-classification model with one label, or of a model with InternLM's `get_score`.

    Prompt and completion are rendered with the model's own tokenizer and chat template.

    Args:
        name: directory or Hub id, such as the output of `recipes/reward.py`, or an adapter of such a model.
        low, high: scores are clipped to this range (MiniMind's: -3 to 3).
        answer_only: score only the text after the reasoning (as MiniMind-3 does).
        answer_share: weight of a separate score for the text in `<answer>`, if a completion has one (MiniMind2's reward
            for reasoning uses 0.6); the score of the whole completion has the rest of the weight.
        batch_size: completions per forward pass.
        trust_remote_code: run the code that comes with the model; needed for `get_score`.

    Raises:
        InputError: `name` is not a reward model, or its tokenizer has more tokens than the model.
    """

    def __init__(
        self,
        name: str,
        low: float = -3.0,
        high: float = 3.0,
        answer_only: bool = False,
        answer_share: float = 0.0,
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ):
        self.low, self.high, self.batch_size = low, high, batch_size
        self.answer_only, self.answer_share = answer_only, answer_share
        try:
            self.model = _load(name, trust_remote_code).eval().requires_grad_(False)
            self.tokenizer = load_tokenizer_of(name, trust_remote_code=trust_remote_code)
        except CheckpointError as error:
            raise InputError(f"reward model {name}: {str(error).removeprefix(f'{name}: ')}") from error
        config = self.model.config.get_text_config()
        if (size := vocabulary_size(self.tokenizer)) > config.vocab_size:
            raise InputError(
                f"reward model {name} has {config.vocab_size} tokens, its tokenizer {size}: they do not belong together"
            )
        config.pad_token_id = self.tokenizer.pad_token_id

    def __call__(self, prompts: list, completions: list, messages: list | None = None, **_: Any) -> list[float]:
        """A clipped score per completion; `messages` replaces prompts that are already rendered."""
        prompts = messages or prompts
        if self.answer_only:
            completions = [answer_of(completion).strip() for completion in completions]
        device = PartialState().device
        self.model.to(device)
        if device.type == "cpu":
            use_cpu_kernels(self.model)
        scores = self._scores([_messages(*pair) for pair in zip(prompts, completions, strict=True)])
        answers = {row: _ANSWER.search(text_of(completion)) for row, completion in enumerate(completions)}
        with_answer = [row for row, answer in answers.items() if answer and self.answer_share]
        if with_answer:
            shorter = [_messages(prompts[row], answers[row][1].strip()) for row in with_answer]
            for row, score in zip(with_answer, self._scores(shorter), strict=True):
                scores[row] += self.answer_share * (score - scores[row])
        return scores

    @torch.inference_mode()
    def _scores(self, conversations: list[list[dict]]) -> list[float]:
        if hasattr(self.model, "get_score"):
            scores = [float(self.model.get_score(self.tokenizer, messages)) for messages in conversations]
        else:
            scores = []
            for start in range(0, len(conversations), self.batch_size):
                batch = self.tokenizer.apply_chat_template(
                    conversations[start : start + self.batch_size],
                    padding=True,
                    tokenizer_kwargs={"padding_side": "right"},
                    return_dict=True,
                    return_tensors="pt",
                ).to(self.model.device)
                scores += self.model(**batch).logits[:, 0].float().tolist()
        return [min(max(score, self.low), self.high) for score in scores]


def _load(name: str, trust_remote_code: bool) -> PreTrainedModel:
    made_for = architecture_of(name) or "?"
    if made_for.endswith("ForSequenceClassification"):
        model = _load_classifier(name, trust_remote_code)
        if model.config.num_labels != 1:
            raise InputError(f"reward model {name} has {model.config.num_labels} labels; a reward model has one")
        return model
    if made_for == "?":
        read_config(name)  # raises an error that says what is missing
    if trust_remote_code:
        model = _from_pretrained(AutoModel, name, trust_remote_code=True)
        if hasattr(model, "get_score"):
            return model
    raise InputError(
        f"reward model {name} is a {made_for}: train a reward model with recipes/reward.py; a model with its own "
        "get_score also needs trust_remote_code=true"
    )


def _load_classifier(name: str, trust_remote_code: bool) -> PreTrainedModel:
    """Load MiniMinds with our loader, which checks more, and other models with transformers; adapters are merged."""
    *adapters, base = adapter_chain(name)
    if is_native_file(base) or read_config(base, OWN_TYPES)[0].get("model_type") == "minimind":
        return load_model(name, MiniMindForSequenceClassification, dtype=torch.float32 if adapters else "auto")
    if not adapters:
        return _from_pretrained(AutoModelForSequenceClassification, name, trust_remote_code=trust_remote_code)
    if len(adapters) > 1:
        raise InputError(f"reward model {name}: an adapter of an adapter: merge {adapters[1]} into {base} first")
    adapter = Adapter(name)
    return adapter.merged_into(
        _from_pretrained(
            AutoModelForSequenceClassification,
            base,
            head_may_miss=adapter.labels is not None,
            num_labels=adapter.labels or 1,
            trust_remote_code=trust_remote_code,
        )
    )


def _from_pretrained(auto_class, name: str, *, head_may_miss: bool = False, trust_remote_code: bool, **options):
    try:
        with without_load_report():
            model, info = auto_class.from_pretrained(
                name, output_loading_info=True, trust_remote_code=trust_remote_code, **options
            )
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: cannot be loaded: {one_line(error)}") from error
    if info["missing_keys"] and not head_may_miss:  # they would be random
        raise CheckpointError(f"{name}: tensors are missing: {', '.join(sorted(info['missing_keys']))}")
    check_finite(model.named_parameters(), name)
    return model


def _messages(prompt: str | list[dict], completion: str | list[dict]) -> list[dict]:
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    return [*asked, *said]


def is_reward_model(name: str) -> bool:
    """Whether a spec is the path or Hub id of a model or adapter, not the name of a function."""
    if (Path(name) / "adapter_config.json").is_file():
        return True
    try:
        architectures = json.loads((Path(name) / "config.json").read_text(encoding="utf-8")).get("architectures")
        return bool(architectures)
    except (OSError, ValueError):
        return "/" in name and ":" not in name
