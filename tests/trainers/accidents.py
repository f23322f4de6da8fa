"""What tests of accidents share: things that happen at a step, and what is left then."""

from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerCallback

from tests.forking import start

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a.keys() & b.keys())


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class At(TrainerCallback):
    """Does something at the beginning of a step (numbered from 1)."""

    def __init__(self, step: int, do):
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.do()


@contextmanager
def running(code: str, folder: Path):
    """A script in a process of its own, given `folder / "out"`, and the file that it prints to."""
    script, log = folder / "script.py", folder / "log"
    script.write_text(code)
    process = start(script, [folder / "out"], stdout=log)
    try:
        yield process, log
    finally:
        process.kill()
        process.join()
