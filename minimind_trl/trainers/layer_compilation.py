"""`--torch_compile`: the decoder layers of a trainer's model as compiled code."""

import torch
from accelerate.utils import TorchDynamoPlugin
from transformers.modeling_layers import GradientCheckpointingLayer

from ..internals import TrainerHooks


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
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode, dynamic=True)
        self.accelerator.print("compiling the layers: the first step takes up to a minute")

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):
            return super().evaluate(*args, **kwargs)
