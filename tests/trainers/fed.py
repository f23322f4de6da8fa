"""Trains one method on rollouts that depend on the prompts alone, in as many processes as it is started in.

Arguments: method, folder. Every process writes `rank-R.pt`: its weights, its losses, held-out figures, tracker.
"""

import os
import sys
import zlib
from pathlib import Path

import torch

from minimind_trl.rewards import Reward
from tests.trainers.online import low_ids, online, prompts


def completion(prompt: list[int], turn: int) -> list[int]:
    generator = torch.Generator().manual_seed(zlib.crc32(bytes(str((prompt, turn)), "ascii")))
    length = int(torch.randint(1, 4, (1,), generator=generator))
    return torch.randint(3, 556, (length,), generator=generator).tolist()


def main(method: str, folder: Path) -> None:
    trainer = online(
        method,
        folder,
        reward=Reward(low_ids, "low_ids", 0, 1),
        rows=prompts(32),
        held_out=prompts(7),
        max_steps=4,
        per_device_train_batch_size=16 // int(os.environ.get("WORLD_SIZE", 1)),
        logging_steps=1,
        learning_rate=1e-3,
        # DeepSpeed clips actor and critic together and not apart, so that here neither is
        **({"kl_coef": 0.1, "max_grad_norm": 100.0} if method == "ppo" else {"beta": 0.1}),
    )

    def fed(prompt_ids):
        turns = [place % trainer.num_generations + 10 * trainer.state.global_step for place in range(len(prompt_ids))]
        return [completion(*pair) for pair in zip(prompt_ids, turns, strict=True)]

    trainer.generate_completions = fed
    figures = trainer.evaluate()
    trainer.train()
    result = {
        "weights": trainer.accelerator.get_state_dict(trainer.model_wrapped),  # of ZeRO-3 the first process alone
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "norms": [log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log],
        "figures": [figures, trainer.evaluate()],
        "world": trainer.args.world_size,
        "wrapper": type(trainer.model_wrapped).__name__,
        "state": trainer.pack_method_state(trainer.method_state()) if method == "spo" else {},
    }
    torch.save(result, folder / f"rank-{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
