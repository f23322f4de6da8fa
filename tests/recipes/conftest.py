"""What the tests of recipes share."""

from pathlib import Path

import pytest

from tests.recipes.launching import QUICK, as_options, launch_program


@pytest.fixture(scope="session")
def pretrained(once) -> Path:
    """The tiny preset after a few steps of pretraining on the embedded data, by the recipe and the real launcher."""

    def train(folder: Path) -> None:
        options = ["--config", "recipes/configs/pretrain/tiny.yaml", *as_options(output_dir=folder, **QUICK)]
        done = launch_program("pretrain", *options)
        assert done.returncode == 0, done.stderr

    return once("pretrained", train)
