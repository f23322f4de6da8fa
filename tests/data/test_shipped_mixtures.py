"""Every mixture under data_configs/ is valid and builds from stand-ins of its sources; TRL trains on what comes out."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from minimind_trl.data import load_mixture
from tests.conftest import REPOSITORY
from tests.data.stand_ins import LEAKS, serve
from tests.loopback_hub import LoopbackHub

# The data of tiny-tools is not in the repository; tests/data/test_tiny_tools_data.py makes it.
MIXTURES = sorted(path for path in REPOSITORY.glob("data_configs/**/*.yaml") if path.parent.name != "tiny-tools")
NAMES = [str(path.relative_to(REPOSITORY / "data_configs").with_suffix("")) for path in MIXTURES]
COLUMNS = {
    "pretrain": {"text"},
    "midtrain": {"text"},
    "sft": {"messages"},
    "distill": {"messages"},
    "dpo": {"prompt", "chosen", "rejected"},
    "reward": {"prompt", "chosen", "rejected"},
    "rlaif": {"prompt"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """What came of every mixture, all in one process that reads from a Hub on this machine."""
    home = tmp_path_factory.mktemp("home")
    with LoopbackHub() as hub:
        serve(hub)
        command = [sys.executable, "-m", "tests.data.train_mixtures", *map(str, MIXTURES)]
        environment = {**hub.environment(home), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(NAMES, json.loads(done.stdout.splitlines()[-1]).values(), strict=True))


def test_the_mixtures_that_were_promised_are_there():
    promised = {
        *(f"pretrain/{name}" for name in ("default", "general", "reasoning")),
        *(f"midtrain/{name}" for name in ("default", "code-heavy", "math-heavy")),
        *(f"sft/{name}" for name in ("general", "code", "reasoning")),
        *("dpo/helpfulness", "dpo/safety", "rlaif/ppo", "rlaif/grpo", "rlaif/spo"),
        *(f"minimind/{name}" for name in ("pretrain", "sft", "dpo", "rlaif")),
        *(f"tiny/{name}" for name in ("pretrain", "midtrain", "sft", "dpo", "rlaif")),
    }
    assert promised <= set(NAMES)


@pytest.mark.slow  # building and training on them all takes a minute and a half
@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_trains(results, name):
    result = results[name]
    assert "error" not in result, result["error"]
    assert result["steps"] == 2
    assert {*COLUMNS[result["phase"]], "source"} <= set(result["columns"])
    assert result["validation"] > 0
    assert len(result["checked"]) == len(result["lock"]["sources"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_loses_no_row_without_a_reason(results, name):
    for source in results[name]["lock"]["sources"]:
        if "rows_in" in source:
            used = sum(source[split]["rows"] - source[split]["repeated"] for split in ("train", "validation"))
            assert source["rows_in"] == used + sum(source["dropped"].values()), source["name"]
            assert used > 0
            assert abs(source["train"]["share"] - source["target_share"]) < 0.02


@pytest.mark.slow
def test_no_source_is_pinned_to_nothing(results):
    for name in NAMES:
        for source in results[name]["lock"]["sources"]:
            assert all(len(file["digest"]) in (40, 64) for file in source["files"]), name


@pytest.mark.slow
def test_questions_of_a_benchmark_are_found_and_dropped(results):
    """The stand-ins of web mathematics and synthetic sets repeat a few test questions, as the real ones do."""
    found = Counter(
        source["dropped"].get("shares a run of words with an evaluation set", 0)
        for result in results.values()
        for source in result["lock"]["sources"]
        if "dropped" in source
    )
    assert found[LEAKS] >= 3


@pytest.mark.parametrize("path", MIXTURES, ids=NAMES)
def test_no_test_split_is_trained_on(path):
    for source in load_mixture(path).datasets:
        files = source.data_files.train if source.data_files else []
        assert not any("test" in name for name in [*source.splits, *files]), source.name


@pytest.mark.slow
def test_helpfulness_and_safety_share_no_row(results):
    assert results["dpo/helpfulness"]["first"] != results["dpo/safety"]["first"]
    sources = [
        {(s.source, s.data_dir, str(s.data_files), str(s.fields)) for s in load_mixture(path).datasets}
        for path in MIXTURES
        if path.parent.name == "dpo"
    ]
    assert not sources[0] & sources[1]
