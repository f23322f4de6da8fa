import copy
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from minimind_trl.tokenization import GENERATIONS, inference_template, train_tokenizer

UPSTREAM = Path(__file__).resolve().parents[2] / ".." / "shared" / "tokenizers"

TEXTS = [
    "Once upon a time, a small robot learned to read. It read every book in the house, and then it wondered.",
    "从前有一个小机器人，它学会了读书。它读完了家里的每一本书，然后问为什么。",
    "def why(answer):\n    return {'assistant': answer, 'user': 'Why?', \"tool\": [1, 2, 3]}\n",
]


@pytest.fixture(scope="session")
def trained():
    """A tokenizer of our own making, so that most tests need no material from outside."""
    return train_tokenizer(TEXTS, vocab_size=400)


@pytest.fixture(params=GENERATIONS)
def shipped(request, trained):
    """A tokenizer with the inference template of either generation."""
    tokenizer = copy.deepcopy(trained)
    tokenizer.chat_template = inference_template(request.param)
    return tokenizer


@pytest.fixture(params=GENERATIONS)
def upstream_dir(request):
    if not (folder := UPSTREAM / request.param).is_dir():
        pytest.skip("needs the upstream tokenizers in ../shared, which are not part of the project")
    return folder


@pytest.fixture
def upstream(upstream_dir):
    """The original tokenizer of either generation."""
    return AutoTokenizer.from_pretrained(upstream_dir)
