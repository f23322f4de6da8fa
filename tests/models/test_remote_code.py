"""A saved checkpoint works in a process that has transformers but not this package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minimind_trl.models import MiniMindForCausalLM

SCRIPT = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers import AutoTokenizer, pipeline

sys.modules["minimind_trl"] = None  # any import of it fails from here on

def check(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    torch.save(model(torch.arange(3, 12)[None]).logits.detach(), folder + "-logits.pt")

    chat = [{"role": "user", "content": "copy: cat dog"}]
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)(chat, max_new_tokens=4, do_sample=False)
    assert answer[0]["generated_text"][-1]["role"] == "assistant"

    for auto_class in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
        head = auto_class.from_pretrained(folder, trust_remote_code=True, num_labels=1)
        assert torch.equal(head.model.norm.weight, model.model.norm.weight)
    model.save_pretrained(folder + "-again")  # the code travels on

for folder in sys.argv[1:]:
    check(folder)
"""


@pytest.fixture(scope="module")
def elsewhere(checkpoints, tmp_path_factory) -> Path:
    """A folder in which an interpreter without the package has used every kind of checkpoint."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for kind, checkpoint in checkpoints.items():
        (folder / kind).symlink_to(checkpoint)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, *(str(folder / kind) for kind in checkpoints)]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def test_checkpoint_without_the_package(checkpoints, kind, elsewhere):
    expected = MiniMindForCausalLM.from_pretrained(checkpoints[kind]).eval()(torch.arange(3, 12)[None]).logits
    torch.testing.assert_close(torch.load(elsewhere / f"{kind}-logits.pt"), expected)
    assert (elsewhere / f"{kind}-again" / "modeling_minimind.py").is_file()


@pytest.mark.parametrize("file", ["configuration_minimind.py", "modeling_minimind.py"])
def test_code_files_are_saved_beside_the_weights(checkpoints, kind, file):
    assert (checkpoints[kind] / file).is_file()
