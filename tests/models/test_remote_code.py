"""A saved checkpoint works in a process that has transformers but not this package."""

import os
import subprocess
import sys

import pytest
import torch

from minimind_trl.models import MiniMindForCausalLM

SCRIPT = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers import AutoTokenizer, pipeline

sys.modules["minimind_trl"] = None  # any import of it fails from here on
folder, logits_file = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
torch.save(model(torch.arange(3, 12)[None]).logits.detach(), logits_file)

chat = [{"role": "user", "content": "copy: cat dog"}]
answer = pipeline("text-generation", model=model, tokenizer=tokenizer)(chat, max_new_tokens=4, do_sample=False)
assert answer[0]["generated_text"][-1]["role"] == "assistant"

for auto_class in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
    head = auto_class.from_pretrained(folder, trust_remote_code=True, num_labels=1)
    assert torch.equal(head.model.norm.weight, model.model.norm.weight)
model.save_pretrained(folder + "-again")  # the code travels on
"""


def test_checkpoint_without_the_package(checkpoints, kind, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    folder = tmp_path / kind
    folder.symlink_to(checkpoints[kind])
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "logits.pt")]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = MiniMindForCausalLM.from_pretrained(checkpoints[kind]).eval()(torch.arange(3, 12)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)
    assert (tmp_path / f"{kind}-again" / "modeling_minimind.py").is_file()


@pytest.mark.parametrize("file", ["configuration_minimind.py", "modeling_minimind.py"])
def test_code_files_are_saved_beside_the_weights(checkpoints, kind, file):
    assert (checkpoints[kind] / file).is_file()
