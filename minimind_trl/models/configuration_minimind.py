"""Configuration of the MiniMind models, both generations (MiniMind2, 2025; MiniMind-3, 2026).

This file is saved with checkpoints as remote code, so it imports only transformers and the standard library.
"""

import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# Defaults in which the two generations differ. MiniMind-3 is the default generation.
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "minimind2": {
        "use_qk_norm": False,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "router_aux_loss_coef": 0.1,
        "router_aux_loss_type": "sequence",
    },
    "minimind3": {
        "use_qk_norm": True,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "num_experts_per_tok": 1,
        "n_shared_experts": 0,
        "router_aux_loss_coef": 5e-4,
        "router_aux_loss_type": "global",
    },
}
DEFAULT_NUM_EXPERTS = 4

# Only MiniMind2 wrote these keys, so a config with one of them belongs to that generation.
_MINIMIND2_KEYS = ("n_routed_experts", "n_shared_experts", "scoring_func", "aux_loss_alpha", "seq_aux")

# YaRN as upstream enables it with `inference_rope_scaling`.
_UPSTREAM_YARN = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.0,
}

_MINIMIND2 = {"family": "minimind2", "num_attention_heads": 8, "num_key_value_heads": 2}
_MINIMIND3 = {"family": "minimind3", "num_attention_heads": 8, "num_key_value_heads": 4}

# Every saved config names all classes, so that a process without this package can load a language model's checkpoint as
# a reward model. TRL also looks for this map before it loads a custom architecture from a path.
_AUTO_MAP = {
    "AutoConfig": "configuration_minimind.MiniMindConfig",
    "AutoModel": "modeling_minimind.MiniMindModel",
    "AutoModelForCausalLM": "modeling_minimind.MiniMindForCausalLM",
    "AutoModelForSequenceClassification": "modeling_minimind.MiniMindForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_minimind.MiniMindForTokenClassification",
}

# About 1M parameters with the bundled tokenizer: trains in minutes on two CPU cores.
_TINY: dict[str, Any] = {
    "family": "minimind3",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 556,
    "max_position_embeddings": 2048,
    # At this width 0.02 makes attention so flat that copying, which most tasks need, takes far longer to learn.
    "initializer_range": 0.08,
}

PRESETS: dict[str, dict[str, Any]] = {
    # About a fifth of tiny: the student when distilling from tiny.
    "nano": {
        "family": "minimind3",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 556,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
    },
    "tiny": _TINY,
    # As tiny, for texts of a few hundred tokens: with the usual base of RoPE neighbouring positions look so alike
    # that a model of this size takes far longer to learn to copy numbers digit by digit.
    "tiny-short": {**_TINY, "rope_theta": 100.0},
    "minimind2-small": {**_MINIMIND2, "hidden_size": 512, "num_hidden_layers": 8},
    "minimind2": {**_MINIMIND2, "hidden_size": 768, "num_hidden_layers": 16},
    "minimind2-moe": {**_MINIMIND2, "hidden_size": 640, "num_hidden_layers": 8, "num_experts": 4},
    "minimind3": {**_MINIMIND3, "hidden_size": 768, "num_hidden_layers": 8},
    "minimind3-moe": {**_MINIMIND3, "hidden_size": 768, "num_hidden_layers": 8, "num_experts": 4},
}


def default_intermediate_size(hidden_size: int, family: str = "minimind3") -> int:
    """FFN size that upstream derives from the hidden size; a multiple of 64.

    MiniMind2: `64 * ceil(int(8h / 3) / 64)`; MiniMind-3: `64 * ceil(pi * h / 64)`.
    """
    width = int(hidden_size * 8 / 3) if family == "minimind2" else hidden_size * math.pi
    return 64 * math.ceil(width / 64)


@strict
class MiniMindConfig(PreTrainedConfig):
    r"""
    Configuration of a MiniMind model. Fields have transformers' names; keys of upstream's own configs are accepted
    as aliases (`use_moe`, `n_routed_experts`, `aux_loss_alpha`, `seq_aux`, `scoring_func`, `inference_rope_scaling`,
    `rope_scaling`, `rope_theta`, `flash_attn`, `dropout`). Fields left at `None` get their generation's value.

    Args:
        family (`"minimind2"` or `"minimind3"`, *optional*):
            The generation whose defaults fill fields left at `None`; not stored. Inferred from old keys when absent.
        use_qk_norm (`bool`, *optional*): RMSNorm over `head_dim` on queries and keys before RoPE (MiniMind-3).
        num_experts (`int`, defaults to 0): Routed experts per layer; 0 is a dense model.
        num_experts_per_tok (`int`, *optional*): Experts that each token is routed to.
        n_shared_experts (`int`, *optional*): Experts that every token passes through (MiniMind2).
        moe_intermediate_size (`int`, *optional*): FFN size of one expert; `intermediate_size` when absent.
        norm_topk_prob (`bool`): Renormalise the routing weights of the chosen experts. MiniMind2 does not do so with
            a single expert per token, so this is False for such a MiniMind2 config.
        router_aux_loss_type (`"sequence"`, `"token"` or `"global"`, *optional*): Formula of the load-balancing loss,
            see `load_balancing_loss` in the modeling file.
        router_aux_loss_coef (`float`, *optional*): Weight of that loss in training.
        output_router_logits (`bool`, *optional*): Return router logits and the auxiliary loss while training; on by
            default, because MiniMind always trains with it and TRL drops the loss silently when this is off. Dense
            configs lack the attribute, because TRL treats a model that has it as a MoE model.
        rope_parameters (`dict`, *optional*): RoPE as transformers 5 writes it; `rope_theta` defaults to 1e6.

    Raises:
        ValueError: lists all inconsistent fields.
    """

    model_type: ClassVar[str] = "minimind"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]  # the names before and since 5.24
    # Plans by which transformers shards the backbone by experts and over a pipeline, as in the twins. For tensor
    # parallelism see `base_model_tp_plan`.
    base_model_ep_plan: ClassVar[dict[str, str]] = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_pp_plan: ClassVar[dict[str, tuple[list[str], list[str]]]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    default_theta: ClassVar[float] = 1e6
    attribute_map: ClassVar[dict[str, str]] = {
        "num_local_experts": "num_experts",
        "n_routed_experts": "num_experts",
        "aux_loss_alpha": "router_aux_loss_coef",
    }
    vocab_size: int = 6400
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    use_qk_norm: bool | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    num_experts: int = 0
    num_experts_per_tok: int | None = None
    n_shared_experts: int | None = None
    moe_intermediate_size: int | None = None
    norm_topk_prob: bool = True
    router_aux_loss_type: Literal["sequence", "token", "global"] | None = None
    router_aux_loss_coef: float | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs):
        family = kwargs.pop("family", None) or self._family_of(kwargs)
        if family not in FAMILY_DEFAULTS:
            raise ValueError(f"MiniMindConfig: family {family!r} is unknown; use one of {sorted(FAMILY_DEFAULTS)}")
        problems: list[str] = []
        kwargs = self._read_upstream_keys(kwargs, problems)
        output_router_logits = kwargs.pop("output_router_logits", None)
        self._fill_defaults(family)
        problems += self._inconsistencies()
        if self.num_experts > 0:
            self.output_router_logits = True if output_router_logits is None else output_router_logits
        elif output_router_logits:
            problems.append("output_router_logits=True needs experts (num_experts > 0)")
        if problems:
            raise ValueError("MiniMindConfig: " + "; ".join(problems))
        # An upstream config names upstream's code file, which our checkpoints do not include.
        if not str(kwargs.get("auto_map", {}).get("AutoConfig", "")).endswith(_AUTO_MAP["AutoConfig"]):
            kwargs["auto_map"] = dict(_AUTO_MAP)
        super().__post_init__(**kwargs)

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """How `tp_plan="auto"` shards the backbone: the twins' rules for the layers that this config has."""
        norms = ("q_norm", "k_norm") if self.use_qk_norm else ()
        plan = {
            "layers.*.self_attn.q_proj": "colwise",
            "layers.*.self_attn.k_proj": "colwise",
            "layers.*.self_attn.v_proj": "colwise",
            **{f"layers.*.self_attn.{norm}": "replicated_with_grad_allreduce" for norm in norms},
            "layers.*.self_attn.o_proj": "rowwise",
        }
        feed_forward = "layers.*.mlp"
        if self.num_experts > 0:
            plan |= {
                "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
                "layers.*.mlp.experts.down_proj": "rowwise",
                "layers.*.mlp.experts": "moe_tp_experts",
            }
            if not self.n_shared_experts:
                return plan
            feed_forward = "layers.*.mlp.shared_experts.*"
        return plan | {
            f"{feed_forward}.gate_proj": "colwise",
            f"{feed_forward}.up_proj": "colwise",
            f"{feed_forward}.down_proj": "rowwise",
        }

    def _family_of(self, kwargs: dict[str, Any]) -> str:
        # A MiniMind2 config may set `n_shared_experts`, which is also a field of ours. Our saved configs always include
        # `use_qk_norm`, so only a config without it needs the guess.
        if self.use_qk_norm is None and (
            any(key in kwargs for key in _MINIMIND2_KEYS) or self.n_shared_experts is not None
        ):
            return "minimind2"
        return "minimind3"

    def _read_upstream_keys(self, kwargs: dict[str, Any], problems: list[str]) -> dict[str, Any]:
        """Translate upstream's own keys in place and return the kwargs that remain for transformers."""
        kwargs = dict(kwargs)
        self._alias(kwargs, "n_routed_experts", "num_experts", problems)
        self._alias(kwargs, "num_local_experts", "num_experts", problems)
        self._alias(kwargs, "aux_loss_alpha", "router_aux_loss_coef", problems)
        if (seq_aux := kwargs.pop("seq_aux", None)) is not None and self.router_aux_loss_type is None:
            self.router_aux_loss_type = "sequence" if seq_aux else "token"
        if (scoring := kwargs.pop("scoring_func", "softmax")) != "softmax":
            problems.append(f"scoring_func={scoring!r} is not supported, MiniMind routes with 'softmax'")
        if (dropout := kwargs.pop("dropout", 0.0)) not in (0, None):
            problems.append(f"dropout={dropout} (upstream's residual dropout) is not supported; set attention_dropout")
        if kwargs.pop("flash_attn", True) is False:
            kwargs.setdefault("attn_implementation", "eager")
        use_moe = kwargs.pop("use_moe", None)
        if use_moe is False:
            self.num_experts = 0  # upstream's configs of dense models list expert counts, too
        elif use_moe and not self.num_experts:
            self.num_experts = DEFAULT_NUM_EXPERTS
        self._read_rope(kwargs, problems)
        return kwargs

    def _alias(self, kwargs: dict[str, Any], old: str, new: str, problems: list[str]) -> None:
        value = kwargs.pop(old, None)
        if value is None:
            return
        current = getattr(self, new)
        if current not in (type(self).__dataclass_fields__[new].default, value):
            problems.append(f"{old}={value} contradicts {new}={current}; give one of them")
            return
        setattr(self, new, value)

    def _read_rope(self, kwargs: dict[str, Any], problems: list[str]) -> None:
        scaling = kwargs.pop("rope_scaling", None) or self.rope_parameters
        wants_yarn = kwargs.pop("inference_rope_scaling", None)
        rope_type = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
        if wants_yarn is not None and scaling and wants_yarn != (rope_type == "yarn"):
            problems.append(f"inference_rope_scaling={wants_yarn} contradicts a rope_scaling of type {rope_type!r}")
        if wants_yarn and not scaling:
            scaling = _UPSTREAM_YARN
        if scaling:
            scaling = dict(scaling)  # transformers fills it in place, so the caller's dict must not be used
            legacy_type = scaling.pop("type", None)
            if legacy_type is not None:
                scaling.setdefault("rope_type", legacy_type)
        self.rope_parameters = scaling

    def _fill_defaults(self, family: str) -> None:
        for name, value in FAMILY_DEFAULTS[family].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.intermediate_size is None:
            self.intermediate_size = default_intermediate_size(self.hidden_size, family)
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_experts == 0:
            self._clear_moe_fields()
        elif family == "minimind2" and self.num_experts_per_tok == 1:
            self.norm_topk_prob = False

    def _clear_moe_fields(self) -> None:
        # TRL treats a model with `num_experts_per_tok` and a router coefficient as a MoE model, and fails if it is
        # dense.
        self.num_experts_per_tok = None
        self.n_shared_experts = 0
        self.moe_intermediate_size = None
        self.router_aux_loss_coef = 0.0

    def _inconsistencies(self) -> list[str]:
        """All contradictions between fields, one sentence each."""
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in (
                "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "max_position_embeddings",
            )
            if getattr(self, name) < 1
        ]  # fmt: skip
        if problems:
            return problems
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim * self.num_attention_heads != self.hidden_size and self.head_dim == (
            self.hidden_size // self.num_attention_heads
        ):
            problems.append(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
                " unless head_dim is given"
            )
        if self.head_dim % 2:
            problems.append(f"head_dim={self.head_dim} must be even, RoPE rotates it in halves")
        if self.hidden_act not in ACT2FN:
            problems.append(
                f"hidden_act={self.hidden_act!r} is not an activation of transformers, upstream uses 'silu'"
            )
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type not in ("default", *ROPE_INIT_FUNCTIONS):
            problems.append(
                f"rope_type={rope_type!r} is unknown; choose one of default, {', '.join(ROPE_INIT_FUNCTIONS)}"
            )
        if self.num_experts < 0:
            problems.append(f"num_experts={self.num_experts} must be 0 (dense) or more")
        if self.num_experts > 0:
            problems += self._moe_inconsistencies()
        return problems

    def _moe_inconsistencies(self) -> list[str]:
        problems = []
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            problems.append(
                f"num_experts_per_tok={self.num_experts_per_tok} must lie between 1 and num_experts={self.num_experts}"
            )
        if self.n_shared_experts < 0:
            problems.append(f"n_shared_experts={self.n_shared_experts} must be 0 or more")
        if self.moe_intermediate_size < 1:
            problems.append(f"moe_intermediate_size={self.moe_intermediate_size} must be at least 1")
        return problems

    @property
    def use_moe(self) -> bool:
        """Upstream's name for "has routed experts"."""
        return self.num_experts > 0

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "MiniMindConfig":
        """The config of a named size (see `PRESETS`), with fields overridden by keyword.

        Raises:
            ValueError: the name is not a preset.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


__all__ = ["FAMILY_DEFAULTS", "PRESETS", "MiniMindConfig", "default_intermediate_size"]
