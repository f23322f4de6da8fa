"""`minimind-trl push` and `minimind-trl data push`, to a Hub on 127.0.0.1."""

import json
import shutil
import subprocess
import sys

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard

from minimind_trl.cli import main
from minimind_trl.data.prepared import load_prepared
from tests.conftest import REPOSITORY
from tests.loopback_uploads import UploadHub

TINY = REPOSITORY / "data_configs" / "tiny" / "sft.yaml"
SOURCE = {"name": "gsm", "source": "openai/gsm8k", "files": [{"name": "x", "digest": "0" * 40}]}
LOCK = {"phase": "sft", "config": "general", "sources": [SOURCE]}
METRICS = {"before": {"eval_loss": 3.0}, "after": {"eval_loss": 1.25, "eval_runtime": 2.0}, "options": {}}


@pytest.fixture
def hub(monkeypatch):
    with UploadHub() as hub:
        hub.use(monkeypatch)
        yield hub


@pytest.fixture
def run(checkpoints, tmp_path):
    """What a run leaves in its folder, some of which must stay at home."""
    folder = shutil.copytree(checkpoints["dense3"], tmp_path / "run")
    card = "---\nlicense: apache-2.0\nbase_model: /home/me/base\n---\n# run\nload(name, trust_remote_code=True)\n"
    (folder / "README.md").write_text(card)
    for name, content in {"mixture.lock.json": LOCK, "metrics.json": METRICS, "recipe.json": {}}.items():
        (folder / name).write_text(json.dumps(content))
    for name in ("report.html", "curves.png", "training_args.bin", "trainer_state.json"):
        (folder / name).write_bytes(b"content")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.pt").write_bytes(b"pickle")
    return folder


def card_of(hub: UploadHub, name: str) -> ModelCard:
    return ModelCard(hub.files(name)["README.md"].decode())


def puts(hub: UploadHub) -> list[int]:
    return [request.status for request in hub.requests if request.method == "PUT"]


def test_a_run_is_uploaded_with_what_the_hub_reads(hub, run, capsys):
    assert main(["push", str(run), "me/it", "--private", "--language", "zh", "en"]) == 0
    assert f"are at {hub.url}/me/it" in capsys.readouterr().out
    files = hub.files("models/me/it")
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert {"modeling_minimind.py", "tokenizer.json", "chat_template.jinja", "config.json"} < set(files)
    assert {"mixture.lock.json", "metrics.json", "report.html", "curves.png", "recipe.json"} < set(files)
    assert not {"training_args.bin", "trainer_state.json", "optimizer.pt"} & set(files)
    assert hub.repos["models/me/it"].private
    data = card_of(hub, "models/me/it").data
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["zh", "en"], ["openai/gsm8k"])
    assert (data.pipeline_tag, data.library_name, data.base_model) == ("text-generation", "transformers", None)
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("loss", 1.25, "openai/gsm8k")
    assert result.dataset_name == "held-out rows of sft/general" and data.model_name == "it"


def test_the_twin_needs_no_remote_code(hub, run):
    assert main(["push", str(run), "me/twin", "--twin", "--license", "mit"]) == 0
    files = hub.files("models/me/twin")
    assert json.loads(files["config.json"])["architectures"] == ["Qwen3ForCausalLM"]
    assert not any(name.endswith(".py") for name in files) and "report.html" in files
    card = card_of(hub, "models/me/twin")
    assert "trust_remote_code" not in card.text and card.data.license == "mit"


def test_a_broken_upload_is_continued(hub, run, capsys):
    hub.fail("POST .*/commit/", status=403)
    assert main(["push", str(run), "me/it"]) == 2
    assert "this token may not write there" in capsys.readouterr().err
    assert hub.files("models/me/it") == {} and puts(hub) == [200, 200]  # the weights and a picture
    hub.requests.clear()
    assert main(["push", str(run), "me/it"]) == 0
    assert puts(hub) == [] and "model.safetensors" in hub.files("models/me/it")


def test_a_repository_that_is_there_gets_another_commit(hub, run):
    assert main(["push", str(run), "me/it"]) == 0
    (run / "report.html").write_text("new")
    assert main(["push", str(run), "me/it"]) == 0
    assert hub.files("models/me/it")["report.html"] == b"new"
    assert len(hub.repos["models/me/it"].commits) == 3  # an empty one, and two uploads


def test_a_rate_limit_is_waited_for(hub, run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for pattern in ("preupload", "PUT /lfs", "info/lfs"):
        hub.fail(pattern, status=429, retry_after=0)
    assert main(["push", str(run), "me/it"]) == 0
    assert sorted(request.status for request in hub.requests).count(429) == 3
    assert "model.safetensors" in hub.files("models/me/it")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{missing}", "me/it"], "no such folder; give the output_dir of a run"),
        (["{empty}", "me/it"], "no model there (config.json is missing)"),
        (["{run}", "it"], "give the owner, too: USER/NAME"),
        (["{run}", "me/it me"], "not a name of a repository"),
        (["{run}", "other/it"], "this token may not write there"),
    ],
)
def test_push_refuses_in_one_line(hub, run, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    paths = {"run": run, "missing": tmp_path / "missing", "empty": tmp_path / "empty"}
    assert main(["push", *(argument.format(**paths) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert hub.repos == {}


def test_the_token_is_in_no_message(hub, run, capsys, monkeypatch):
    hub.use(monkeypatch, token="hf_wrongSecret")
    assert main(["push", str(run), "me/it"]) == 2
    told = capsys.readouterr()
    assert "the Hub refuses the token: log in with `hf auth login`" in told.err and told.err.count("\n") == 1
    hub.use(monkeypatch)
    for status in (500, 401):
        hub.fail("repos/create", status=status)
        assert main(["push", str(run), "me/it"]) == 2
        told_more = capsys.readouterr()
        assert str(status) in told_more.err or "refuses the token" in told_more.err
        assert not {"hf_wrongSecret", hub.token} & {*(told.out + told.err + told_more.err).split()}
        assert "hf_" not in told.err + told_more.err


def test_a_mirror_is_named_if_it_cannot_be_reached(hub, run, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "me/it"]) == 2
    assert "the Hub (http://127.0.0.1:9) cannot be reached" in capsys.readouterr().err


# --- data sets --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "mix"
    assert main(["data", "build", str(TINY), "--output_dir", str(folder)]) == 0
    return folder


def test_a_prepared_mixture_is_uploaded_as_a_data_set(hub, prepared, tmp_path):
    assert main(["data", "push", str(prepared), "me/mix", "--license", "cc0-1.0", "--language", "en"]) == 0
    files = hub.files("me/mix")
    assert sorted(files) == ["README.md", "mixture.lock.json", "train.parquet", "validation.parquet"]
    own = load_prepared(prepared)
    card = DatasetCard(files["README.md"].decode())
    assert card.data.license == "cc0-1.0" and "sft" in card.data.tags
    assert f"| tiny_sft | data | {len(own['train']):,} | 100.0% |" in card.text
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {split: len(rows) for split, rows in own.items()}
    assert found["train"][0] == own["train"][0]


@pytest.mark.parametrize(
    ("break_it", "arguments", "message"),
    [
        (lambda folder: (folder / "mixture.lock.json").unlink(), ["me/mix"], "not a prepared mixture"),
        (lambda folder: (folder / "sft_sft_train.jsonl").write_text("{}\n"), ["me/mix"], "build it again"),
        (lambda folder: None, ["mix"], "give the owner, too"),
    ],
)
def test_data_push_refuses_in_one_line(hub, prepared, tmp_path, capsys, break_it, arguments, message):
    folder = shutil.copytree(prepared, tmp_path / "copy")
    break_it(folder)
    assert main(["data", "push", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert hub.repos == {}


# --- mirrors ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_mirror_is_read_and_nothing_else(hub, run, prepared, tmp_path, capsys):
    """`HF_ENDPOINT` alone, which is read when a process starts: a model and a data set, in one command."""
    assert main(["push", str(run), "me/it"]) == main(["data", "push", str(prepared), "me/mix"]) == 0
    capsys.readouterr()
    mixture = tmp_path / "mix.yaml"
    mixture.write_text(
        "metadata: {phase: sft, max_seq_length: 64}\n"
        "datasets: [{name: mix, source: me/mix}]\n"
        "validation: {ratio: 0.1}\n"
    )
    hub.requests.clear()
    command = ["eval", "me/it", "--data_config", str(mixture), "--eval_batches", "1", "--batch_size", "2", "--no-bf16"]
    done = subprocess.run(
        [sys.executable, "-m", "minimind_trl.cli", *command],
        env=hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "eval_loss" in done.stdout
    read = [request for request in hub.requests if "/resolve/" in request.path]
    assert {"model.safetensors", "tokenizer.json", "train.parquet"} <= {request.path.split("/")[-1] for request in read}
    assert not [one.path for one in read if one.path.startswith("/me/it/") and one.path.endswith(".py")]
    assert {request.method for request in hub.requests} <= {"GET", "HEAD", "POST"}
