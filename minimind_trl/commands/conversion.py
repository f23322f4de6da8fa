"""Convert checkpoints between this library's format, upstream's `.pth` and the stock twins."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..errors import CertificateError, CheckpointError, one_line
from ..evaluation.llama_cpp import check_xllamacpp_installed
from ..files import atomic_path
from ..models import MiniMindForCausalLM
from ..models.checkpoints import check_vocabulary, load_model, load_tokenizer_of, save_native, tokenizer_folder
from ..models.gguf_file import FILE_TYPES, PIP_LINE, check_gguf_installed
from ..models.stored import find_file
from ..models.twins import to_twin, twin_type
from ..tokenization import prepared_for_engines, prepared_for_trl
from .gguf_export import export_gguf
from .vllm_export import export_vllm

FORMATS = ("hf", "native", "llama", "qwen3", "vllm", "gguf")
CERTIFIED = ("vllm", "gguf")


@dataclass
class Converted:
    """What was written where, and lines on what was compared."""

    path: Path
    lines: list[str] = field(default_factory=list)


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    to: str,
    *,
    dtype: str = "auto",
    tokenizer: str | os.PathLike | None = None,
    outtype: str | None = None,
    certified: bool = True,
    config_overrides: dict | None = None,
) -> Converted:
    """Convert a checkpoint between upstream's format, this library's, the stock twins' and those of engines.

    Args:
        source: directory, Hub id, native `.pth`, or an adapter, which is merged into its base model.
        destination: directory to create, or the `.pth` file for `to="native"`.
        to: "hf" (MiniMind with its code files), "native" (upstream's `.pth`), "llama" (dense MiniMind2), "qwen3"
            (MiniMind-3; a mixture of experts becomes Qwen3-MoE), "vllm" (the twin, readable by vLLM and SGLang), "gguf"
            (the twin for llama.cpp and Ollama).
        dtype: "auto" keeps the source's, or writes float16 with `to="native"`, as upstream does.
        tokenizer: directory of the tokenizer; by default the source's, if it has one. Not written beside a `.pth`.
            With `to="hf"` its MiniMind template gets the markers that TRL needs; a twin's is saved without them.
        outtype: type of a GGUF file's matrices, f16 by default.
        certified: whether an export for engines is compared with its source, which writes `certificate.json`.
        config_overrides: config fields that a native source does not record.

    Raises:
        CertificateError: the export computes something else than its source; nothing is written.
        CheckpointError: the source is unreadable or has no counterpart, the destination exists or cannot be written, or
            the tokenizer has more tokens than the model.
    """
    destination = Path(destination)
    if to not in FORMATS:
        raise CheckpointError(f"--to {to}: choose one of {', '.join(FORMATS)}")
    if to == "native" and destination.suffix != ".pth":
        raise CheckpointError(f"{destination}: a native checkpoint is a file ending in .pth, such as full_sft_768.pth")
    if to == "native" and tokenizer is not None:
        raise CheckpointError(f"--tokenizer {tokenizer}: no tokenizer is written beside a .pth; leave this out")
    if outtype is not None and to != "gguf":
        raise CheckpointError(f"--outtype {outtype}: this is for --to gguf; use --dtype")
    if not certified and to not in CERTIFIED:
        raise CheckpointError(f"--no_certificate: --to {to} has no certificate; leave this out")
    if to == "gguf":
        _check_gguf(outtype or "f16", dtype, certified)
    if destination.exists() and (destination.is_file() or any(destination.iterdir())):
        raise CheckpointError(f"{destination}: exists already; give a new path or remove it")
    model = load_model(source, dtype=dtype, config_overrides=config_overrides)
    if to == "native":
        with _writing(destination):
            save_native(model, destination, torch.float16 if dtype == "auto" else model.dtype)
        return Converted(destination)
    model, loaded = _in_format(model, to), _tokenizer_for(source, tokenizer)
    if loaded is not None:
        check_vocabulary(model, loaded, source)
        loaded = prepared_for_trl(loaded) if to == "hf" else prepared_for_engines(loaded)
    if to in CERTIFIED:
        return _exported(model, loaded, source, destination, to, outtype or "f16", certified)
    with _writing(destination):
        _save_directory(model, loaded, destination)
    return Converted(destination)


def _check_gguf(outtype: str, dtype: str, certified: bool) -> None:
    if outtype not in FILE_TYPES:
        raise CheckpointError(f"--outtype {outtype}: choose one of {', '.join(FILE_TYPES)}")
    if dtype != "auto":
        raise CheckpointError(f"--dtype {dtype}: for --to gguf give --outtype")
    check_gguf_installed()
    if certified:
        check_xllamacpp_installed(PIP_LINE)


def _exported(model, tokenizer, source, destination: Path, to: str, outtype: str, certified: bool) -> Converted:
    """Write the folder for an engine atomically: if the comparison fails, there is none."""
    if tokenizer is None:
        raise CheckpointError(f"{source} brings no tokenizer, which --to {to} needs: give --tokenizer DIR")
    with _writing(destination), atomic_path(destination) as temporary:
        temporary.mkdir()
        if to == "vllm":
            comparisons = export_vllm(model, tokenizer, temporary, certified=certified)
        else:
            name = destination.name
            comparisons = export_gguf(
                model.float(), tokenizer, temporary, name=name, outtype=outtype, certified=certified
            )
    unverified = "not compared with the source (--no_certificate)"
    return Converted(destination, [comparison.line() for comparison in comparisons] or [unverified])


@contextmanager
def _writing(destination: Path) -> Iterator[None]:
    """Report a full or read-only disk in one line; for a full one torch reports only a position."""
    try:
        yield
    except CertificateError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises a RuntimeError
        reason = getattr(error, "strerror", None) or one_line(error)
        disk = next(folder for folder in destination.absolute().parents if folder.exists())
        free = shutil.disk_usage(disk).free / 2**20
        raise CheckpointError(f"{destination}: cannot be written, with {free:,.1f} MiB free there: {reason}") from error


def _in_format(model: MiniMindForCausalLM, to: str) -> PreTrainedModel:
    if to == "hf":
        return model
    twin = twin_type(model.config)
    if to not in CERTIFIED and not twin.startswith(to):
        raise CheckpointError(
            f"this model is equivalent to a {twin}, not to a {to}; use --to {twin.removesuffix('_moe')}"
        )
    return to_twin(model)


def _tokenizer_for(source, tokenizer):
    if tokenizer is None:
        folder = tokenizer_folder(source)
        return load_tokenizer_of(folder) if folder and find_file(folder, TOKENIZER_CONFIG_FILE) else None
    if not (Path(tokenizer) / "tokenizer_config.json").is_file():
        raise CheckpointError(f"{tokenizer}: no tokenizer there (tokenizer_config.json is missing)")
    return load_tokenizer_of(tokenizer)


def _save_directory(model: PreTrainedModel, tokenizer, destination: Path) -> None:
    """Write atomically, so that an interrupted conversion leaves no partial checkpoint."""
    with atomic_path(destination) as temporary:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
