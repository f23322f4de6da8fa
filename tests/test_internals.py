"""Private names of other libraries: an upgrade that moves one fails here, with a line that says what moved."""

import ast

import pytest
import torch
from transformers import Trainer, TrainingArguments
from trl import DPOTrainer, GRPOTrainer, RewardTrainer, SFTTrainer

from minimind_trl.internals import (
    DATASETS,
    ENGINES,
    TRANSFORMERS,
    TRL,
    GRPOHooks,
    PrivateName,
    TrainerHooks,
    collisions,
    moved,
    use_cpu,
)
from tests.conftest import REPOSITORY

CONTRACT = (DATASETS, ENGINES, TRANSFORMERS, TRL)


@pytest.mark.parametrize("names", CONTRACT)
def test_installed_libraries_have_every_name(names):
    assert moved(names) == []


def test_what_has_moved_is_reported():
    gone = PrivateName("transformers.trainer:Trainer", "_gone")
    other = PrivateName("transformers.trainer:Trainer", "_save_checkpoint", ("model", "folder"))
    unset = PrivateName("trl:GRPOTrainer", "_never_set", assigned=True)
    lines = moved((gone, other, unset))
    assert [line.partition("): ")[2] for line in lines] == ["no longer there", "no parameter folder", "no longer set"]
    assert all("seen in" in line for line in lines)


@pytest.mark.parametrize("trainer", [Trainer, SFTTrainer, DPOTrainer, RewardTrainer, GRPOTrainer])
def test_public_names_of_our_hooks_are_no_methods_of_a_trainer(trainer):
    assert collisions(TrainerHooks, trainer) == []
    assert collisions(GRPOHooks, GRPOTrainer) == []


def test_the_library_calls_a_hook_and_a_hook_the_library():
    calls = []

    class Library:
        def save(self):
            self._save_checkpoint("model", None)

        def _save_checkpoint(self, model, trial):
            calls.append("library")

    class Ours(TrainerHooks):
        def save_checkpoint(self, model, trial=None):
            super().save_checkpoint(model, trial)
            calls.append("ours")

    class Both(Ours, Library):
        pass

    Both().save()
    assert calls == ["library", "ours"]


def test_no_other_file_uses_a_private_name_of_the_list():
    """Except the model files, which travel with checkpoints."""
    private = {entry.name for names in CONTRACT for entry in names if entry.name.startswith("_")}
    exempt = {"internals.py", "modeling_minimind.py", "configuration_minimind.py"}
    found = []
    for path in sorted((REPOSITORY / "minimind_trl").rglob("*.py")) + sorted((REPOSITORY / "recipes").glob("*.py")):
        if path.name in exempt:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or (node.name if isinstance(node, ast.FunctionDef) else None)
            if name in private:
                found.append(f"{path.name}:{node.lineno} {name}")
    assert found == []


def test_arguments_made_on_a_gpu_have_the_cpu_as_their_device_at_once(tmp_path):
    """Made later, after an Accelerator, the device would take away the state that the Accelerator reads."""
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    arguments.__dict__["_setup_devices"] = torch.device("cuda")  # as on a machine with a GPU
    use_cpu(arguments)
    assert arguments.__dict__["_setup_devices"] == torch.device("cpu")
