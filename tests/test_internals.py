"""Private names of other libraries: an upgrade that moves one fails here, with a line that says what moved."""

import pytest

from minimind_trl.internals import DATASETS, ENGINES, TRANSFORMERS, TRL, PrivateName, moved


@pytest.mark.parametrize("names", [DATASETS, ENGINES, TRANSFORMERS, TRL])
def test_installed_libraries_have_every_name(names):
    assert moved(names) == []


def test_what_has_moved_is_reported():
    gone = PrivateName("transformers.trainer:Trainer", "_gone")
    other = PrivateName("transformers.trainer:Trainer", "_save_checkpoint", ("model", "folder"))
    unset = PrivateName("trl:GRPOTrainer", "_never_set", assigned=True)
    lines = moved((gone, other, unset))
    assert [line.partition("): ")[2] for line in lines] == ["no longer there", "no parameter folder", "no longer set"]
    assert all("seen in" in line for line in lines)
