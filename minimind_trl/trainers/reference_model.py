"""The reference model of online trainers, and how far the policy is from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model, use_adapter

from .lm_head import add_learned_positions_head
from .rollout import joined
from .rollout_engine import RolloutEngine

LOGITS_AT_ONCE = 2**23  # of each of two models, as float32: 34 MB


class ReferenceModel(RolloutEngine):
    """Reference log-probabilities are GRPOTrainer's; this is what it cannot do for a model without a path.

    With a new adapter the reference is the model without it; with a `PeftModel` it is the adapter as it was at the
    start, which GRPOTrainer keeps under the name "ref".
    """

    def add_reference(self, reference: nn.Module, sync: bool) -> None:
        """Make a separate model the reference; with `sync` it follows the policy."""
        add_fused_lm_head(reference, temperature=self.temperature, cast_lm_head_to_fp32=self.args.cast_lm_head_to_fp32)
        if not self.args.cast_lm_head_to_fp32:
            add_learned_positions_head(reference, self.temperature, pack=True)
        if self.args.disable_dropout:
            disable_dropout_in_model(reference)
        reference.eval().requires_grad_(False)
        self.compile_layers(reference)
        if self.is_deepspeed_enabled:
            self.ref_model = prepare_deepspeed(reference, self.accelerator)
        elif self.is_fsdp_enabled:
            self.ref_model = prepare_fsdp(reference, self.accelerator)
        else:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        if sync:
            self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The reference model, within the block."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
            yield self.model

    def kl_to_reference(self, tensors: dict[str, Any]) -> Tensor:
        """(B, T): KL(policy || reference) in nats over the whole vocabulary, at each position of the completions.

        Unlike an estimate from the tokens, it does not depend on how they were sampled.
        """
        (ids, mask), length = joined(tensors), tensors["completion_ids"].shape[1]
        # the same number in every process, as a sharded model's forward passes must be
        rows = max(1, LOGITS_AT_ONCE // ((self.max_completion_length or length) * self.model.config.vocab_size))
        parts = []
        for start in range(0, len(ids), rows):
            inputs = {"input_ids": ids[start : start + rows], "attention_mask": mask[start : start + rows]}
            policy = self._log_softmax(self.model, inputs, length)
            with self.reference() as reference:
                others = self._log_softmax(reference, inputs, length)
            parts.append(F.kl_div(others, policy, reduction="none", log_target=True).sum(-1))
        return torch.cat(parts)

    def _log_softmax(self, model: nn.Module, inputs: dict[str, Tensor], length: int) -> Tensor:
        with self.accelerator.autocast():
            logits = model(**inputs, logits_to_keep=length + 1, use_cache=False).logits[:, :-1]
        return (logits.float() / self.temperature).log_softmax(-1)
