"""Load a checkpoint with `tp_plan="auto"` in every process that runs this script, and save its logits.

Arguments: checkpoint, file.
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from minimind_trl import InputError  # noqa: F401  # any name of the package registers the Auto classes


def main(checkpoint: str, file: str) -> None:
    dist.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, tp_plan="auto").eval()
    sharded = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    ids = torch.arange(3, 15).reshape(2, 6)
    with torch.no_grad():
        logits = model(ids).logits
    if dist.get_rank() == 0:
        torch.save({"logits": logits, "sharded": sharded}, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
