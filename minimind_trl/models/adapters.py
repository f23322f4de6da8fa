"""LoRA and the other adapters of PEFT: how a recipe makes one, and how one becomes a part of its model."""

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
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import CheckpointError, InputError, nearest, one_line
from .modeling_minimind import MiniMindForCausalLM, MiniMindForSequenceClassification, MiniMindForTokenClassification
from .stored import NATIVE_SUFFIXES, UNREADABLE, check_finite, file_of, read_object, stored_shapes

ALL_LINEAR = "all-linear"
_EMBEDDINGS = re.compile(r"(embed_tokens|lm_head)(\.base_layer)?\.weight$")  # which PEFT puts beside some adapters
_TASKS = {
    "CAUSAL_LM": MiniMindForCausalLM,
    "SEQ_CLS": MiniMindForSequenceClassification,
    "TOKEN_CLS": MiniMindForTokenClassification,
}


# --- making one -------------------------------------------------------------------------------------------------------


def lora_config(lora, model: PreTrainedModel) -> LoraConfig | None:
    """What TRL's options for LoRA come to for a model, or None without `--use_peft`.

    The task type is the model's: a reward model's adapter holds its head, too.

    Args:
        lora: has the fields of TRL's ModelConfig for LoRA.
        model: to be adapted; it is only looked at.

    Raises:
        InputError: a module or parameter that the model has not, or a task that is not the model's.
    """
    from trl import get_peft_config  # a second to import, and models are used without TRL, too

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
    task = next(name for name, kind in _TASKS.items() if isinstance(model, kind))
    if asked not in (task, "CAUSAL_LM"):  # TRL's default, which nobody needs to give
        raise InputError(f"--lora_task_type {asked}: this recipe trains a {type(model).__name__}, which is {task}")
    return task


def _targets(asked: list[str] | str | None, model: PreTrainedModel) -> set[str] | str | None:
    """Names of modules; PEFT takes a string, and not a list of one, for all-linear or a regular expression."""
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
            raise InputError(f"--lora_target_modules {names[0]}: no regular expression ({error})") from error
        if not found:
            raise InputError(f"--lora_target_modules {names[0]}: matches no module, such as {_an_example(modules)}")
        return names[0]
    _check_parts("lora_target_modules", names, modules)
    return set(names)


def _check_parts(option: str, names: list[str] | str | None, parts: dict[str, Any]) -> None:
    names = [names] if isinstance(names, str) else names or []
    missing = [name for name in names if not any(f".{part}".endswith(f".{name}") for part in parts)]
    if missing:
        known = {part.rpartition(".")[2] for part in parts} - {""}
        hints = [f"{name}{nearest(name, [*known, ALL_LINEAR])}" for name in missing]
        raise InputError(f"--{option}: the model has no {'; '.join(hints)}, and has such as {_an_example(parts)}")


def _an_example(parts: dict[str, Any]) -> str:
    return next((part for part in parts if "_proj" in part), next(reversed(parts)))


def leaves_experts_out(config: LoraConfig, model: PreTrainedModel) -> bool:
    """Whether all linear layers are adapted but not the experts, whose weights are stacked in one parameter a layer."""
    stacked = any(name.endswith(".experts.gate_up_proj") for name, _ in model.named_parameters())
    return stacked and config.target_modules == ALL_LINEAR and not config.target_parameters


# --- loading one ------------------------------------------------------------------------------------------------------


def adapter_config_file(name: str | os.PathLike, **hub) -> Path | None:
    """The adapter_config.json of a directory or Hub id, None where it is no adapter (or nothing at all)."""
    if Path(name).suffix in NATIVE_SUFFIXES and not Path(name).is_dir():
        return None
    hub = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    try:
        found = find_adapter_config_file(str(name), **hub)
    except (OSError, ValueError):  # a Hub that cannot be reached, no Hub id: loading the model itself will say so
        return None
    return Path(found) if found else None


def base_of(name: str | os.PathLike, **hub) -> str | None:
    """The checkpoint that an adapter belongs to; None where `name` is no adapter.

    A relative path holds from the working directory or, if it is not there, from one of the folders above the adapter.

    Raises:
        CheckpointError: the adapter does not tell.
    """
    file = adapter_config_file(name, **hub)
    if file is None:
        return None
    base = read_object(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{name}: the adapter does not tell its base model (base_model_name_or_path)")
    if Path(base).exists() or Path(base).is_absolute():
        return base
    above = (folder / base for folder in file.absolute().parents)
    return next((str(path) for path in above if path.exists()), base)


def chain_of(name: str | os.PathLike, **hub) -> list[str]:
    """A checkpoint, its base if it is an adapter, the base's base, ...; the last one is no adapter.

    Raises:
        CheckpointError: an adapter does not tell its base model, or is its own.
    """
    chain = [str(name)]
    while (base := base_of(chain[-1], **(hub if len(chain) == 1 else {}))) is not None:
        if any(_same(base, other) for other in chain):
            raise CheckpointError(f"{name}: an adapter whose base model is itself: {' -> '.join([*chain, base])}")
        chain.append(base)
    return chain


def is_native(name: str | os.PathLike) -> bool:
    """Whether a checkpoint is upstream's file, or an adapter of one."""
    return Path(chain_of(name)[-1]).suffix in NATIVE_SUFFIXES


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def class_of_adapter(name: str | os.PathLike, **hub) -> type[PreTrainedModel] | None:
    """The MiniMind class that an adapter was trained on; None where it is no adapter, or does not tell."""
    file = adapter_config_file(name, **hub)
    return _TASKS.get(str(read_object(file).get("task_type"))) if file else None


class Adapter:
    """An adapter's files, read and found to fit each other; nothing is built yet.

    Args:
        name: directory or Hub id.
        hub: `revision`, `token`, ... of a Hub id.

    Raises:
        CheckpointError: a file is missing or unreadable, or the config asks for more than the weights hold.
    """

    def __init__(self, name: str | os.PathLike, **hub):
        file = adapter_config_file(name, **hub)
        self.name, self.folder = str(name), file.parent
        fields = read_object(file)
        try:
            self.config = PeftConfig.from_pretrained(str(self.folder))
        except UNREADABLE as error:
            raise CheckpointError(f"{file}: {one_line(error)}") from error
        self.base, self.model_class = base_of(name, **hub), class_of_adapter(name, **hub)
        self.shapes = stored_shapes([self._weights(**hub)])
        self._check_rank(fields)

    def _check_rank(self, fields: dict[str, Any]) -> None:
        """An r that is not that of the stored matrices, which PEFT would allocate all the same."""
        ranks = [shape[0] for key, shape in self.shapes.items() if ".lora_A." in key]
        if not ranks:
            return
        pattern = fields.get("rank_pattern") or {}
        asked = [fields.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
        limit = max(max(shape) for shape in self.shapes.values()) if pattern else max(ranks)
        for rank in asked:
            if isinstance(rank, list):  # AdaLoRA's, which says what is left of each
                continue
            if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank <= limit:
                raise CheckpointError(
                    f"{self.name}: adapter_config.json does not fit: r is {rank!r}, the weights have {ranks[0]}"
                )

    def _weights(self, **hub) -> Path:
        hub = {key: value for key, value in hub.items() if key != "trust_remote_code"}
        for file in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME):
            if found := file_of(self.name, file, **hub):
                return found
        raise CheckpointError(f"{self.name}: no {ADAPTER_SAFE_WEIGHTS_NAME} beside {ADAPTER_CONFIG_NAME}")

    @property
    def labels(self) -> int | None:
        """How many numbers the head gives that the adapter holds, None where it holds none."""
        heads = [shape[0] for key, shape in self.shapes.items() if key.endswith("score.weight")]
        return heads[0] if heads else None

    def put_on(self, model: PreTrainedModel) -> PeftModel:
        """The model under the adapter, in evaluation mode.

        Raises:
            CheckpointError: the adapter's tensors are not those of the model, or hold values that are not finite.
        """
        if any("lm_head" in key or "embed_tokens" in key for key in self.shapes):
            _untie(model)
        try:
            with warnings.catch_warnings():  # what PEFT warns of is refused below
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
        """The model with the adapter added to its weights, as if it had been trained as a whole.

        Raises:
            CheckpointError: of `put_on`; or the adapter is none that can be added, such as a learned prompt.
        """
        kind = self.config.peft_type.value
        if self.config.is_prompt_learning:
            raise CheckpointError(
                f"{self.name}: a {kind} adapter is no change of the weights, so it cannot be merged; only "
                "`minimind-trl eval` takes it"
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
    """A head of its own: one that is the embeddings, too, cannot be changed without them."""
    head = model.get_output_embeddings()
    if head is None or not model.config.tie_word_embeddings:
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
