"""Read a checkpoint's files and check that they fit each other, without running code from them or building a model."""

import json
import math
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils import logging as transformers_logging

from ..errors import CheckpointError, first_line

_NATIVE_SUFFIXES = (".pth", ".pt", ".safetensors")
# What reading untrusted files and building models from them can raise; huge sizes end in RuntimeError or OverflowError.
UNREADABLE = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, AssertionError),
    *(pickle.UnpicklingError, SafetensorError, StrictDataclassError),
)
# Parts of keys that wrappers add: DDP, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_MAX_LISTED = 5  # tensors in a message
Shapes = dict[str, tuple[int, ...]]


@contextmanager
def without_load_report() -> Iterator[None]:
    """Silence transformers' report of missing tensors inside the block: our loaders raise an error for them."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


# --- tensors ----------------------------------------------------------------------------------------------------------


def read_native_state(path: str | os.PathLike, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The state dict of a file. No code from the file is run.

    Prefixes that DDP, torch.compile, FSDP or activation checkpointing add to the keys (`module.`, `_orig_mod.`) are
    removed.

    Args:
        path: `.pth`, `.pt`, `.bin` or `.safetensors`; upstream's resume files hold the state dict under "model".
        device: "meta" reads the shapes of a pickled file without its data.

    Raises:
        CheckpointError: no such file, not a checkpoint, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return _unwrapped(load_file(path), path)
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message explains how to switch the protection off, so only the object's name is passed on
        name = re.search(r"GLOBAL (\S+)", str(error))
        found = f"it holds {name[1]}" if name else "its pickle holds more than tensors"
        raise CheckpointError(
            f"{path}: refused, the file is not a plain set of tensors and could run code when loaded ({found})"
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({first_line(error)})") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]  # a resume file
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        raise CheckpointError(f"{path}: holds no state dict (a dictionary of tensors, or one under the key 'model')")
    return _unwrapped(content, path)


def _unwrapped(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The state dict without wrappers' prefixes; upstream's scripts keep them when they save a compiled model."""
    plain = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in plain:
            raise CheckpointError(f"{path}: has {name} twice, with and without a wrapper's prefix ({key})")
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {key} claims shape {tuple(value.shape)}, but the file holds fewer values")
        plain[name] = value
    return plain


def stored_shapes(files: Iterable[Path]) -> Shapes:
    """Shapes of all tensors in a checkpoint's files; only the headers of safetensors files are read.

    Raises:
        CheckpointError: a file is damaged, or a pickle holds more than tensors.
    """
    shapes: Shapes = {}
    for file in files:
        if file.suffix != ".safetensors":
            shapes |= {key: tuple(value.shape) for key, value in read_native_state(file, device="meta").items()}
            continue
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot be loaded: {first_line(error)}") from error
    return shapes


def weight_files(name: str | os.PathLike, **hub) -> list[Path]:
    """The files that transformers would load a checkpoint's weights from, downloaded if they are on the Hub."""
    hub.pop("trust_remote_code", None)
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if file := find_file(name, single, **hub):
            return [file]
        if file := find_file(name, index, **hub):
            shards = read_object(file).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise CheckpointError(f"{file}: has no weight_map from tensor names to files")
            return [Path(cached_file(str(name), shard, **hub)) for shard in sorted(set(shards.values()))]
    return sorted(Path(name).glob("*.safetensors")) or sorted(Path(name).glob("pytorch_model*.bin"))


def find_file(name: str | os.PathLike, file: str, **hub) -> Path | None:
    """A file of a directory or Hub repository (downloaded), or None if there is no such file."""
    hub.pop("trust_remote_code", None)
    found = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **hub)
    return Path(found) if found else None


def is_native_file(name: str | os.PathLike) -> bool:
    """Whether a name is that of a file in upstream's format; it need not exist."""
    return Path(name).suffix in _NATIVE_SUFFIXES and not Path(name).is_dir()


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], name: str | os.PathLike) -> None:
    """Refuse weights with NaN or infinite values right after loading, when the checkpoint's name is known.

    Raises:
        CheckpointError: lists the tensors with such values.
    """
    bad = [key for key, value in tensors if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        more = f" and {len(bad) - _MAX_LISTED} more" if len(bad) > _MAX_LISTED else ""
        raise CheckpointError(
            f"{name}: NaN or infinite values in {len(bad)} tensor(s): {', '.join(bad[:_MAX_LISTED])}{more}; the run "
            "that saved it had diverged, or the file is damaged: use an earlier checkpoint"
        )


def check_finite_files(folder: Path) -> None:
    """Run `check_finite` on all safetensors files of a checkpoint that a run is resumed from.

    Raises:
        CheckpointError: as for `check_finite`.
    """
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            check_finite(((key, tensors.get_tensor(key)) for key in tensors.keys()), file)  # noqa: SIM118


# --- sizes from shapes ------------------------------------------------------------------------------------------------


def common_size(shapes: Shapes, *where: tuple[str, int]) -> int | None:
    """The most common size of tensors whose key matches a pattern, along the dimension given with the pattern."""
    sizes = Counter(
        shape[dim]
        for pattern, dim in where
        for key, shape in shapes.items()
        if re.search(pattern, key) and len(shape) > dim
    )
    return sizes.most_common(1)[0][0] if sizes else None


def count_numbered(shapes: Shapes, pattern: str) -> int:
    """Number of layers or experts according to the keys; a number that few tensors carry counts as misnamed."""
    tensors = Counter(int(match[1]) for key in shapes if (match := re.search(pattern, key)))
    usual = max(tensors.values(), default=0)
    last = max((index + 1 for index, count in tensors.items() if count > usual / 2), default=0)
    return min(last, 2 * len(tensors) + 1)  # some layers may be missing, but not nearly all of ten million


def size_problems(get: Callable[[str], Any], shapes: Shapes) -> list[str]:
    """Differences between the sizes in the config of a MiniMind or twin and those of the stored tensors.

    Args:
        get: returns a field of the config by its name, or None if it is not set.
    """
    if not shapes:
        return []
    is_moe = any(".mlp.experts." in key for key in shapes)
    stored = {
        "vocab_size": common_size(shapes, (r"(embed_tokens|lm_head)\.weight$", 0)),
        "hidden_size": common_size(shapes, (r"layernorm\.weight$", 0), (r"(q|k|v|gate|up)_proj\.weight$", 1)),
        "num_hidden_layers": count_numbered(shapes, r"(?:^|\.)layers\.(\d+)\.") or None,
        "head_dim": common_size(shapes, (r"[qk]_norm\.weight$", 0)),
        "num_labels": common_size(shapes, (r"^score\.weight$", 0)),
    }
    if is_moe:
        stored["moe_intermediate_size"] = common_size(
            shapes, (r"\.experts\.down_proj$", 2), (r"experts\.\d+\.down_proj\.weight$", 1)
        )
    else:
        stored["intermediate_size"] = common_size(shapes, (r"\.mlp\.(gate|up)_proj\.weight$", 0))
    if stored["num_hidden_layers"]:
        stored["num_experts"] = common_size(shapes, (r"\.mlp\.gate\.weight$", 0)) or 0
        stored["n_shared_experts"] = count_numbered(shapes, r"\.shared_experts\.(\d+)\.")
    problems = [
        f"{name} is {get(name)}, the weights have {size}"
        for name, size in stored.items()
        if size is not None and get(name) not in (None, size)
    ]
    if stored["num_labels"] is None and (get("num_labels") or 0) > max(stored["vocab_size"] or 0, 2):
        problems.append(f"num_labels is {get('num_labels')}, the weights have no score for labels")
    heads, head_dim = get("num_attention_heads"), get("head_dim")
    for count, kind, pattern in (
        ("num_attention_heads", "query", r"q_proj\.weight$"),
        ("num_key_value_heads", "key", r"k_proj\.weight$"),
    ):
        rows = common_size(shapes, (pattern, 0))
        if None not in (rows, get(count), head_dim) and get(count) * head_dim != rows:
            problems.append(f"{count} x head_dim is {get(count)} x {head_dim}, the weights have {rows} {kind} rows")
        elif head_dim is None and None not in (rows, get(count), heads) and get(count) > rows:
            problems.append(f"{count} is {get(count)}, the weights have {rows} {kind} rows")
    return problems


# --- config.json ------------------------------------------------------------------------------------------------------

_COUNTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "num_experts", "num_experts_per_tok"),
    *("n_shared_experts", "moe_intermediate_size", "num_labels"),
)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not readable JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds {_kind(content)}, not an object")
    return content


def read_config(name: str | os.PathLike, model_types: Iterable[str] = (), **hub) -> tuple[dict[str, Any], Shapes]:
    """Read a checkpoint's config.json and the shapes of its tensors, and check that they fit each other.

    Without this check, wrong sizes would be allocated before anyone notices that they are wrong.

    Args:
        name: directory or Hub id.
        model_types: model types whose tensor names are known. For other types only impossible sizes are refused.
        hub: `revision`, `token`, ... of a Hub id.

    Raises:
        CheckpointError: lists every contradiction; or there are no weights, or a file cannot be read.
    """
    hub.pop("trust_remote_code", None)
    if Path(name).is_dir() and not (Path(name) / CONFIG_NAME).is_file():
        raise CheckpointError(f"{name}: no checkpoint: {CONFIG_NAME} is missing")
    try:
        config = read_object(Path(cached_file(str(name), CONFIG_NAME, **hub)))
        shapes = stored_shapes(weight_files(name, **hub))
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: cannot be loaded: {first_line(error)}") from error
    known = config.get("model_type") in tuple(model_types) and not config.get("quantization_config")
    problems = [*_form_problems(config), *(_value_problems(config) if known else _impossible_sizes(config, shapes))]
    if known and not problems:
        problems = size_problems(lambda field: _size_in(config, field), shapes)
    if problems:
        raise CheckpointError(f"{name}: config.json does not fit: {'; '.join(problems)}")
    return config, shapes


def _form_problems(config: dict[str, Any]) -> list[str]:
    """Fields of the wrong form in a config of any model type."""
    problems = []
    if not isinstance(config.get("model_type", ""), str):
        problems.append(f"model_type is {_kind(config['model_type'])}, not a name")
    architectures = config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(one, str) for one in architectures)
    ):
        problems.append(f"architectures is {_kind(architectures)}, not a list of names")
    for dtype in (config.get("dtype"), config.get("torch_dtype")):
        if dtype is not None and not _is_float_type(dtype):
            problems.append(f"dtype is {dtype!r}, not a float type such as 'float32' or 'bfloat16'")
    if not isinstance(config.get("auto_map", {}), dict):
        problems.append(f"auto_map is {_kind(config['auto_map'])}, not an object")
    return problems


def _is_float_type(name: Any) -> bool:
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _value_problems(config: dict[str, Any]) -> list[str]:
    """Values of the wrong type; those of the right type may still be too large."""
    problems = []
    for name, value in config.items():
        if name in _COUNTS and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            problems.append(f"{name} is {value!r}, not a whole number")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{name} is {value}")
        elif isinstance(value, dict):
            problems += [f"{name}: {problem}" for problem in _value_problems(value)]
    return problems


def _impossible_sizes(config: dict[str, Any], shapes: Shapes) -> list[str]:
    """Sizes larger than anything stored, in a config of another model type of transformers.

    Every layer has at least one tensor, and no size exceeds the largest tensor. Models with remote code are not
    checked, because the meaning of their fields is unknown.
    """
    if config.get("model_type") not in CONFIG_MAPPING:
        return []
    limits = {name: max((math.prod(shape) for shape in shapes.values()), default=0) for name in _COUNTS}
    limits |= {"num_hidden_layers": len(shapes), "max_position_embeddings": math.inf}
    problems = []
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, limit in limits.items():
            value = part.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and shapes and value > limit:
                problems.append(f"{name} is {value}, the weights have room for {limit}")
    return problems


def _size_in(config: dict[str, Any], field: str) -> int | None:
    """A size as config.json states it; fields with aliases and defaults are checked once the config is built."""
    if field in ("num_experts", "n_shared_experts", "moe_intermediate_size"):
        return None
    return config.get(field)


def _kind(value: Any) -> str:
    kinds = {str: "text", list: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value), f"{value}")
