"""`--torch_compile`: the decoder layers of a trainer's models as compiled code."""

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils import TorchDynamoPlugin
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..internals import TrainerHooks, compile_for

# PPO with a reference has ten: three models, with gradients and without, and the last layer apart; and DDP has its own.
_KINDS = 32


class LayerCompilation(TrainerHooks):
    """Compiles each decoder layer in place, once for all, where accelerate would compile the whole model in a wrapper.

    Layers of one kind share their code, which serves rows of any number and length, so a run waits for one compilation
    of a layer. Names of weights stay as they are. Evaluation is not compiled: answers come token by token, in shapes of
    their own. Under DeepSpeed and FSDP, whose engines hold the layers, accelerate compiles as it does.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not self.args.torch_compile or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return
        self.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="no")
        self.compile_layers(self.model)
        self.accelerator.print("compiling the layers: the first step takes up to a minute")

    def compile_layers(self, model: nn.Module) -> None:
        """Compile the layers of a model that is used in training steps, if that was asked for."""
        if not self.args.torch_compile:
            return
        compile_for(_KINDS)
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode, dynamic=True)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self.without_compilation():
            return super().evaluate(*args, **kwargs)

    def without_compilation(self) -> AbstractContextManager:
        """Within the block layers run as they are."""
        return torch.compiler.set_stance("force_eager") if self.args.torch_compile else nullcontext()
