"""Train a small model for a few steps in every process that runs this script, and save unsharded weights.

Arguments: kind, folder. More than one process shards the model with torch's fully_shard, over gloo.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from minimind_trl.models import MiniMindForCausalLM
from tests.conftest import small_config

STEPS, ROWS, LENGTH = 3, 4, 12


def main(kind: str, folder: Path) -> None:
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    # Without the balancing loss: each process computes it over its own rows only.
    options = {"router_aux_loss_coef": 0.0} if kind.startswith("moe") else {}
    model = MiniMindForCausalLM(small_config(kind, **options)).train()
    batches = torch.randint(0, model.config.vocab_size, (STEPS, ROWS, LENGTH))
    if processes > 1:
        dist.init_process_group("gloo")
        mesh = dist.init_device_mesh("cpu", (processes,))
        for layer in model.modules():
            if type(layer).__name__ in model._no_split_modules:
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    # AdamW would amplify rounding errors in gradients that are almost zero.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for batch in batches:
        loss = model(batch[rank::processes], labels=batch[rank::processes]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach() / processes)
    losses = torch.stack(losses)
    if processes > 1:
        dist.all_reduce(losses)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(folder, state_dict=weights)
        (folder / "losses.json").write_text(json.dumps(losses.tolist()))
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
