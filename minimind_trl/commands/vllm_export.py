"""`minimind-trl convert --to vllm`: the stock twin in files that vLLM, SGLang and older transformers read, too."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME

from ..errors import CertificateError
from ..evaluation.certificates import (
    Comparison,
    certificate_prompts,
    compare_logits,
    compare_rendered,
    compare_tokens,
    versions,
)
from ..files import write_json
from .gguf_export import CERTIFICATE

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def export_vllm(
    twin: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, certified: bool = True
) -> list[Comparison]:
    """Save a twin and its tokenizer, and compare what transformers reads back.

    Config fields have two spellings there: that of transformers 5, and that of transformers 4, which engines and
    their older versions read. Without the older spelling such an engine would take the default `rope_theta` of 10,000
    and 128 experts, without a warning.

    Args:
        twin: from `to_twin`.
        tokenizer: its tokenizer; the chat template must be plain Jinja.
        folder: an existing folder; if there is an error, remove it.
        certified: whether to compare.

    Returns:
        the comparisons; empty without a certificate.

    Raises:
        CertificateError: what is read back differs.
    """
    twin.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _update(folder / CONFIG_NAME, _older_fields(twin))
    _update(
        folder / TOKENIZER_CONFIG_FILE, _older_tokenizer_fields(tokenizer), drop=("backend", "extra_special_tokens")
    )
    if not certified:
        return []
    comparisons = _compared(twin, tokenizer, folder)
    for comparison in comparisons:
        if comparison.problem:
            raise CertificateError(f"not written: the saved files disagree: {comparison.line()}; {comparison.problem}")
    write_json(
        folder / CERTIFICATE,
        {
            "compared": "the folder, as transformers reads it without remote code, with the model and its tokenizer",
            "model": {"architecture": type(twin).__name__, "parameters": twin.num_parameters()},
            "versions": versions(),
            "comparisons": [comparison.as_dict() for comparison in comparisons],
            "not_compared": ["vLLM and SGLang were not run"],
        },
    )
    return comparisons


def _compared(twin, tokenizer, folder: Path) -> list[Comparison]:
    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=twin.dtype, trust_remote_code=False).to(twin.device)
    return [
        *compare_tokens(loaded, tokenizer),
        *([compare_rendered(loaded, tokenizer)] if tokenizer.chat_template else []),
        compare_logits(model.eval(), twin, certificate_prompts(tokenizer)),
    ]


def _older_fields(twin: PreTrainedModel) -> dict[str, Any]:
    rope = dict(twin.config.rope_parameters)
    theta = rope.pop("rope_theta")
    fields = {
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "torch_dtype": str(twin.dtype).removeprefix("torch."),
    }
    experts = getattr(twin.config, "num_experts", None)
    return fields | ({} if experts is None else {"num_experts": experts})


def _older_tokenizer_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    named = {name: getattr(tokenizer, name) for name in _SPECIAL if getattr(tokenizer, name) is not None}
    others = [token for token in special if token not in named.values()]
    return named | {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": others}


def _update(path: Path, fields: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    write_json(path, {name: value for name, value in content.items() if name not in drop})
