"""What the tests of recipes share."""

from pathlib import Path

import pytest

from tests.recipes.launching import QUICK, run


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    """The tiny preset after a few steps of pretraining on the embedded data, by the recipe."""
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    run("pretrain", "tiny", output_dir=folder, **QUICK)
    return folder
