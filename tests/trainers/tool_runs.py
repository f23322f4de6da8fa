"""Trains one method with an environment whose tool every answer calls once, with a number that it sampled.

Arguments: method, folder, step at which the process kills itself (0: never). With several processes, or "fed" for the
step, answers depend on the prompts alone. It resumes from the folder's last checkpoint, and every process writes
`rank-R.pt`: its weights, losses and held-out figures.
"""

import os
import signal
import sys
import zlib
from pathlib import Path

import torch
from transformers import TrainerCallback

from minimind_trl.rewards import Reward
from minimind_trl.tools import ToolLimits, load_environments
from minimind_trl.trainers import last_good_checkpoint
from tests.trainers.online import bandit_model, low_ids, online, prompts


class Kill(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def numbers_of(prompt_ids: list[list[int]]) -> list[list[int]]:
    """Three token ids for each prompt, which depend on it and its place."""
    found = []
    for place, prompt in enumerate(prompt_ids):
        generator = torch.Generator().manual_seed(zlib.crc32(str((prompt, place % 4)).encode()))
        found.append(torch.randint(3, 556, (3,), generator=generator).tolist())
    return found


def main(method: str, folder: Path, kill_at: str) -> None:
    world = int(os.environ.get("WORLD_SIZE", 1))
    is_fed = kill_at == "fed"
    trainer = online(
        method,
        folder,
        model=bandit_model(max_position_embeddings=1024),
        reward=Reward(low_ids, "low_ids", 0, 1),
        rows=prompts(32),
        held_out=prompts(7),
        environment_factory=load_environments(["tests.trainers.tool_world:Sum"], limits=ToolLimits())["Sum"],
        max_steps=6,
        per_device_train_batch_size=16 // world,
        max_completion_length=120,  # room for every call and result
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=2,
    )
    tokenizer, sampled = trainer.text_tokenizer, trainer.generate_completions

    def complete(prompt_ids: list[list[int]]) -> list[list[int]]:
        ids = numbers_of(prompt_ids) if is_fed else sampled(prompt_ids)
        texts = tokenizer.batch_decode(prompt_ids)
        calls = [f'<tool_call>{{"name": "add", "arguments": {{"number": {sum(own) % 7}}}}}</tool_call>' for own in ids]
        asked = [tokenizer(f"{call}<|im_end|>", add_special_tokens=False).input_ids for call in calls]
        pairs = zip(texts, ids, asked, strict=True)
        return [own if "<tool_response>" in text else called for text, own, called in pairs]

    trainer.generate_completions = complete
    if not is_fed and int(kill_at):
        trainer.add_callback(Kill(int(kill_at)))
    figures = trainer.evaluate()
    trainer.train(resume_from_checkpoint=last_good_checkpoint(folder))
    logs = trainer.state.log_history
    result = {
        "weights": trainer.accelerator.get_state_dict(trainer.model_wrapped),
        "losses": [log["loss"] for log in logs if "loss" in log],
        "calls": [log["tools/call_frequency"] for log in logs if "tools/call_frequency" in log],
        "errors": [log["tools/errors"] for log in logs if "tools/errors" in log],
        "figures": [figures, trainer.evaluate()],
        "world": trainer.args.world_size,
        "wrapper": type(trainer.model_wrapped).__name__,
    }
    torch.save(result, folder / f"rank-{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
