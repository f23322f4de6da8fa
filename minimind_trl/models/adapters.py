"""LoRA and PEFT's other adapters: make one for a recipe, load one, and merge one into its base model."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

from ..errors import CheckpointError, InputError, nearest, one_line
from .modeling_minimind import MiniMindForCausalLM, MiniMindForSequenceClassification, MiniMindForTokenClassification
from .stored import UNREADABLE, check_finite, find_file, is_native_file, read_object, stored_shapes

ALL_LINEAR = "all-linear"
_EMBEDDINGS = re.compile(r"(embed_tokens|lm_head)(\.base_layer)?\.weight$")  # PEFT saves them with some adapters
_TASKS = {
    "CAUSAL_LM": MiniMindForCausalLM,
    "SEQ_CLS": MiniMindForSequenceClassification,
    "TOKEN_CLS": MiniMindForTokenClassification,
}


# --- making an adapter ------------------------------------------------------------------------------------------------


def lora_config(lora, model: PreTrainedModel) -> LoraConfig | None:
    """The LoRA config of TRL's options for a model, or None without `--use_peft`.

    The task type is that of the model, so the adapter of a reward model includes its head.

    Args:
        lora: has the LoRA fields of TRL's ModelConfig.
        model: the model to adapt; it is not changed.

    Raises:
        InputError: the model has no such module or parameter, or the task type is not the model's.
    """
    from trl import get_peft_config  # takes a second to import, and models are also used without TRL

    if not lora.use_peft:
        return None
    try:
        config = get_peft_config(lora)
    except (TypeError, ValueError) as error:
        raise InputError(f"--use_peft: {one_line(error)}") from error
    config.task_type = _task_of(lora.lora_task_type, model)
    if (targets := _targets(lora.lora_target_modules, model)) is not None:
        config.target_modules = targets
    _check_parts("lora_modules_to_save", lora.lora_modules_to_save, dict(model.named_modules()))
    _check_parts("lora_target_parameters", lora.lora_target_parameters, dict(model.named_parameters()))
    return config


def _task_of(asked: str, model: PreTrainedModel) -> str:
    name = type(model).__name__  # of a stock twin, too: Qwen3ForCausalLM
    task = next(task for task, kind in _TASKS.items() if name.endswith(kind.__name__.removeprefix("MiniMind")))
    if asked not in (task, "CAUSAL_LM"):  # CAUSAL_LM is TRL's default
        raise InputError(f"--lora_task_type {asked}: this recipe trains a {name}: use {task}")
    return task


def _targets(asked: list[str] | str | None, model: PreTrainedModel) -> set[str] | str | None:
    """Target modules for PEFT: a string for all-linear or a regular expression, a set for names."""
    names = [asked] if isinstance(asked, str) else asked
    if not names:
        return None
    if len(names) == 1 and names[0].lower() == ALL_LINEAR:
        return ALL_LINEAR
    modules = dict(model.named_modules())
    if len(names) == 1 and not re.fullmatch(r"[\w.-]+", names[0]):
        try:
            found = any(re.fullmatch(names[0], name) for name in modules)
        except re.error as error:
            raise InputError(f"--lora_target_modules {names[0]}: not a regular expression ({error})") from error
        if not found:
            raise InputError(
                f"--lora_target_modules {names[0]}: matches no module; the model has {_example(modules)}, for example"
            )
        return names[0]
    _check_parts("lora_target_modules", names, modules)
    return set(names)


def _check_parts(option: str, names: list[str] | str | None, parts: dict[str, Any]) -> None:
    names = [names] if isinstance(names, str) else names or []
    missing = [name for name in names if not any(f".{part}".endswith(f".{name}") for part in parts)]
    if missing:
        known = {part.rpartition(".")[2] for part in parts} - {""}
        hints = [f"{name}{nearest(name, [*known, ALL_LINEAR])}" for name in missing]
        raise InputError(f"--{option}: the model has no {'; '.join(hints)}; it has {_example(parts)}, for example")


def _example(parts: dict[str, Any]) -> str:
    return next((part for part in parts if "_proj" in part), next(reversed(parts)))


def leaves_experts_out(config: LoraConfig, model: PreTrainedModel) -> bool:
    """Whether all-linear misses the experts: each layer stacks their weights in a parameter, not in linear layers."""
    stacked = any(name.endswith(".experts.gate_up_proj") for name, _ in model.named_parameters())
    return stacked and config.target_modules == ALL_LINEAR and not config.target_parameters


# --- loading an adapter -----------------------------------------------------------------------------------------------


def adapter_config_file(name: str | os.PathLike, **hub) -> Path | None:
    """The adapter_config.json of a directory or Hub id; None if it is not an adapter or does not exist."""
    if is_native_file(name):
        return None
    try:
        return find_file(name, ADAPTER_CONFIG_NAME, **hub)
    except (OSError, ValueError):  # an unreachable Hub or an invalid id: loading the model reports it
        return None


def base_checkpoint(name: str | os.PathLike, **hub) -> str | None:
    """The checkpoint that an adapter was trained on; None if `name` is not an adapter.

    A relative path is resolved against the working directory, else against the folders above the adapter.

    Raises:
        CheckpointError: the adapter does not name it.
    """
    file = adapter_config_file(name, **hub)
    if file is None:
        return None
    base = read_object(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{name}: the adapter does not name its base model (base_model_name_or_path)")
    if Path(base).exists() or Path(base).is_absolute():
        return base
    above = (folder / base for folder in file.absolute().parents)
    return next((str(path) for path in above if path.exists()), base)


def adapter_chain(name: str | os.PathLike, **hub) -> list[str]:
    """A checkpoint and, if it is an adapter, its base, the base's base, ...; the last one is not an adapter.

    Raises:
        CheckpointError: an adapter does not name its base model, or the chain is a circle.
    """
    chain = [str(name)]
    while (base := base_checkpoint(chain[-1], **(hub if len(chain) == 1 else {}))) is not None:
        if os.path.realpath(base) in map(os.path.realpath, chain):
            raise CheckpointError(f"{name}: an adapter whose base model is itself: {' -> '.join([*chain, base])}")
        chain.append(base)
    return chain


def is_native(name: str | os.PathLike) -> bool:
    """Whether a checkpoint is a file in upstream's format, or an adapter of one."""
    return is_native_file(adapter_chain(name)[-1])


def adapter_class(name: str | os.PathLike, **hub) -> type[PreTrainedModel] | None:
    """The MiniMind class that an adapter was trained on; None if it is not an adapter or does not record the class."""
    file = adapter_config_file(name, **hub)
    return _TASKS.get(str(read_object(file).get("task_type"))) if file else None


class Adapter:
    """An adapter's files, checked against each other; no module is built yet.

    Args:
        name: directory or Hub id.
        hub: `revision`, `token`, ... of a Hub id.

    Raises:
        CheckpointError: a file is missing or unreadable, or the rank in the config is not that of the weights.
    """

    def __init__(self, name: str | os.PathLike, **hub):
        file = adapter_config_file(name, **hub)
        self.name, self.folder = str(name), file.parent
        fields = read_object(file)
        try:
            self.config = PeftConfig.from_pretrained(str(self.folder))
        except UNREADABLE as error:
            raise CheckpointError(f"{file}: {one_line(error)}") from error
        self.base, self.model_class = base_checkpoint(name, **hub), adapter_class(name, **hub)
        self.shapes = stored_shapes([self._weights(**hub)])
        self._check_rank(fields)

    def _check_rank(self, fields: dict[str, Any]) -> None:
        """Refuse an r that is not that of the stored matrices; PEFT would allocate it anyway."""
        ranks = [shape[0] for key, shape in self.shapes.items() if ".lora_A." in key]
        if not ranks:
            return
        pattern = fields.get("rank_pattern") or {}
        asked = [fields.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
        limit = max(max(shape) for shape in self.shapes.values()) if pattern else max(ranks)
        for rank in asked:
            if isinstance(rank, list):  # AdaLoRA's mask of the remaining ranks
                continue
            if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank <= limit:
                raise CheckpointError(
                    f"{self.name}: adapter_config.json does not fit: r is {rank!r}, the weights have {ranks[0]}"
                )

    def _weights(self, **hub) -> Path:
        for file in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME):
            if found := find_file(self.name, file, **hub):
                return found
        raise CheckpointError(f"{self.name}: no {ADAPTER_SAFE_WEIGHTS_NAME} beside {ADAPTER_CONFIG_NAME}")

    @property
    def labels(self) -> int | None:
        """Number of outputs of the head that the adapter includes; None if it includes none."""
        heads = [shape[0] for key, shape in self.shapes.items() if key.endswith("score.weight")]
        return heads[0] if heads else None

    def put_on(self, model: PreTrainedModel) -> PeftModel:
        """The model with the adapter attached, in evaluation mode.

        Raises:
            CheckpointError: the adapter's tensors do not match the model, or have values that are not finite.
        """
        if any("lm_head" in key or "embed_tokens" in key for key in self.shapes):
            _untie(model)
        try:
            with warnings.catch_warnings():  # the checks below raise errors for what PEFT warns about
                warnings.simplefilter("ignore")
                adapted = PeftModel.from_pretrained(model, str(self.folder))
        except UNREADABLE as error:
            raise CheckpointError(f"{self.name}: does not fit its base model {self.base}: {one_line(error)}") from error
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if missing := sorted(state.keys() - self.shapes.keys()):
            raise CheckpointError(f"{self.name}: {len(missing)} tensors are missing, such as {missing[0]}")
        others = sorted(key for key in self.shapes.keys() - state.keys() if not _EMBEDDINGS.search(key))
        if others:
            raise CheckpointError(
                f"{self.name}: {len(others)} tensors do not fit its base model {self.base}, such as {others[0]}"
            )
        check_finite(state.items(), self.name)
        return adapted.eval()

    def merged_into(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with the adapter added to its weights, as if all of it had been trained.

        Raises:
            CheckpointError: as for `put_on`; or the adapter cannot be merged, such as a learned prompt.
        """
        kind = self.config.peft_type.value
        if self.config.is_prompt_learning:
            raise CheckpointError(
                f"{self.name}: a {kind} adapter does not change the weights, so it cannot be merged; only "
                "`minimind-trl eval` supports it"
            )
        adapted = self.put_on(model)
        if not isinstance(adapted.base_model, BaseTuner):
            raise CheckpointError(f"{self.name}: a {kind} adapter cannot be merged into its model")
        try:
            merged = adapted.merge_and_unload()
        except UNREADABLE as error:
            raise CheckpointError(f"{self.name}: cannot be merged into {self.base}: {one_line(error)}") from error
        return merged.requires_grad_(True)


def _untie(model: PreTrainedModel) -> None:
    """Give the model a head of its own: a head tied to the embeddings cannot change without them."""
    head = model.get_output_embeddings()
    if head is None or not model.config.tie_word_embeddings:
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
