"""What checkpoints of online trainers hold besides weights and optimizer, so that a resume is exact at every step."""

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .rollout_evaluation import RolloutEvaluation

_STATE = "rollout_state-{}.pt"
_SHARED_STATE = _STATE.format("shared")


class RolloutState(RolloutEvaluation):
    """Saves the current rollout, counts and the state of the method in `rollout_state-RANK.pt`, and loads them.

    A subclass adds to it by `method_state` and `load_method_state`. With `shares_state` that part is the same in every
    process and is written once, to `rollout_state-shared.pt`.
    """

    shares_state = False
    num_tokens_generated = 0
    _sampler = None  # of the training prompts; None for a stream

    def method_state(self) -> dict[str, Any]:
        """Tensors and plain values that a checkpoint must keep; copies of what changes in place."""
        return {}

    def pack_method_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """`method_state` as it is written to a file."""
        return state

    def load_method_state(self, state: dict[str, Any]) -> None:
        pass

    def rollout_state(self) -> dict[str, Any]:
        step, minibatches = self.rollout_position
        return {
            "step": step,
            "buffered": minibatches,
            "num_tokens_generated": self.num_tokens_generated,
            "num_reward_errors": self.num_reward_errors,
            "frozen": dict(self.frozen_answers),
            "trainer": self.method_state(),
        }

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        self.rollout_position = state["step"], state["buffered"]
        self.num_tokens_generated, self.frozen_answers = state["num_tokens_generated"], state["frozen"]
        self.num_reward_errors = state.get("num_reward_errors", 0)  # checkpoints of earlier versions have none
        self.load_method_state(state["trainer"])

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"rollout": self.rollout_state()}

    def restore_snapshot(self, snapshot: dict[str, Any]) -> None:
        super().restore_snapshot(snapshot)
        self.load_rollout_state(snapshot["rollout"])

    def save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super().save_optimizer_and_scheduler(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        moving = self.accelerator.unwrap_model(self.ref_model) if self.args.sync_ref_model else None
        state = self.rollout_state() | {"reference": moving and moving.state_dict()}
        method_state = self.pack_method_state(state["trainer"])
        state["trainer"] = None if self.shares_state else method_state
        torch.save(state, Path(output_dir) / _STATE.format(self.args.process_index))
        if self.shares_state and self.args.should_save:
            torch.save(method_state, Path(output_dir) / _SHARED_STATE)

    def load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super().load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = self._load_file(Path(checkpoint) / _STATE.format(self.args.process_index))
        if self.shares_state:
            state["trainer"] = self._load_file(Path(checkpoint) / _SHARED_STATE)
        self.load_rollout_state(state)
        if state["reference"] is not None:
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(state["reference"])

    def _load_file(self, path: Path) -> dict[str, Any]:
        if not path.exists():
            raise InputError(f"{path.parent} has no {path.name}: it is no checkpoint of {type(self).__name__}")
        # The device's type: torch.load does not know cpu:0, which several processes on a CPU have.
        return torch.load(path, map_location=self.accelerator.device.type, weights_only=True)

    # The order of prompts

    def get_train_sampler(self, train_dataset=None):
        self._sampler = super().get_train_sampler(train_dataset)
        return self._sampler

    def run_epoch(self, **kwargs) -> None:
        resumed = kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
        if resumed and self._sampler is not None and self._sampler.shuffle:
            for _ in range(kwargs["epochs_trained"]):  # otherwise the first epoch's order of prompts would come again
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)
        super().run_epoch(**kwargs)
