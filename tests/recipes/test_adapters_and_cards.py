"""LoRA from stage to stage, and the model card that each stage leaves; the recipes run in this process."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from minimind_trl.cli import main
from minimind_trl.evaluation.measures import main_figures, short_number
from minimind_trl.models import load_model
from minimind_trl.rewards import RewardModel
from minimind_trl.run import recipe_run
from minimind_trl.run.model_card import _imports
from minimind_trl.trainers import write_curves
from tests.conftest import REPOSITORY
from tests.loopback_uploads import UploadHub
from tests.recipes.launching import as_options

QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_length": 64,
    "eval_interval": 1,
    "eval_batches": 1,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "save_steps": 1,
    "bf16": False,
    "disable_tqdm": True,
}
LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
ONLINE = {"max_completion_length": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


ROWS = {
    "pretrain": [{"text": f"cat {n} dog"} for n in range(40)],
    "sft": [{"messages": user(f"add 1 to {n}") + assistant(f"{n + 1}")} for n in range(40)],
    "reward": [
        {"prompt": user(f"copy: {n}"), "chosen": assistant(f"{n}"), "rejected": assistant("dog")} for n in range(40)
    ],
    "rlaif": [{"prompt": user(f"copy: cat {n}")} for n in range(40)],
}


class Runs:
    """Recipes by their names, on small mixtures, each from what an earlier one left."""

    def __init__(self, folder: Path):
        self.folder = folder
        for phase, rows in ROWS.items():
            (folder / f"{phase}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            mixture = {"metadata": {"phase": phase}, "datasets": [{"name": "own", "source": f"{phase}.jsonl"}]}
            (folder / f"{phase}.yaml").write_text(yaml.safe_dump(mixture | {"validation": {"ratio": 0.2}}))

    def __call__(self, recipe: str, name: str, phase: str, **options) -> Path:
        online = {name: value for name, value in QUICK.items() if recipe != "ppo" or name != "max_length"}
        given = online | {"data_config": self.folder / f"{phase}.yaml", "output_dir": self.folder / name} | options
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(REPOSITORY)
            patch.setattr(sys, "argv", [f"recipes/{recipe}.py", *as_options(**given)])
            patch.setenv("WANDB_PROJECT", "")
            runpy.run_path(f"recipes/{recipe}.py", run_name="__main__")
        return self.folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def base(runs) -> Path:
    return runs("pretrain", "base", "pretrain", preset="nano", packing=False)


class Watched:
    """A whole model from SFT, and what was to be seen while it was trained: lines, cards, figures."""

    def __init__(self, runs: Runs, base: Path):
        self.cards: list[str] = []
        self.figures: list[Figure] = []
        complete, output = recipe_run.complete_card, io.StringIO()

        def noted(trainer, *rest):
            complete(trainer, *rest)
            self.cards.append(card_of(Path(trainer.args.output_dir)).text)

        def drawn(figure, path, **options):
            self.figures.append(figure)
            path.touch()

        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
            patch.setattr(recipe_run, "complete_card", noted)
            patch.setattr(Figure, "savefig", drawn)
            self.folder = runs("sft", "full", "sft", from_weight=base)
        self.lines = output.getvalue().splitlines()
        self.metrics = json.loads((self.folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def full(runs, base) -> Watched:
    return Watched(runs, base)


@pytest.fixture(scope="module")
def chat(runs, base) -> Path:
    """An adapter of a language model."""
    return runs("sft", "chat", "sft", from_weight=base, **LORA)


@pytest.fixture(scope="module")
def reward(runs, chat) -> Path:
    """An adapter of a reward model, whose body is a language model under an adapter."""
    return runs("reward", "reward", "reward", from_weight=chat, **LORA)


def card_of(folder: Path) -> ModelCard:
    card = ModelCard.load(folder / "README.md")
    assert "None" not in card.text and "[More Information Needed]" not in card.text
    return card


def quick_start(folder: Path) -> str:
    section = re.search(r"## Quick start\n(.*?)\n## ", card_of(folder).text, flags=re.DOTALL)[1]
    return re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1]


def run_quick_start(folder: Path, capsys) -> str:
    """What the code of a card prints, run as it stands there."""
    capsys.readouterr()
    exec(compile(quick_start(folder), "README.md", "exec"), {})
    return capsys.readouterr().out.strip()


# --- LoRA from stage to stage -----------------------------------------------------------------------------------------


def test_a_reward_model_is_trained_with_lora_and_serves_wherever_one_does(runs, chat, reward):
    config = json.loads((reward / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["base_model_name_or_path"] == str(chat)
    assert {name.split(".")[-1] for name in config["target_modules"]} >= {"q_proj", "down_proj"}
    assert any(name.endswith("score.weight") for name in load_file(reward / "adapter_model.safetensors"))
    trained = json.loads((reward / "metrics.json").read_text())["after"]
    options = ["--data_config", str(runs.folder / "reward.yaml"), "--output", str(runs.folder / "eval.json")]
    assert main(["eval", str(reward), *options]) == 0
    measured = json.loads((runs.folder / "eval.json").read_text())["figures"]["model"]
    assert measured["eval_loss"]["value"] == pytest.approx(trained["eval_loss"], abs=1e-4)
    rewards = {"reward_funcs": reward, "critic_model": reward, "from_weight": chat}
    ppo = runs("ppo", "ppo", "rlaif", **rewards, **LORA, **ONLINE)
    assert json.loads((ppo / "adapter_config.json").read_text())["base_model_name_or_path"] == str(chat)
    assert (ppo / "critic" / "model.safetensors").is_file()
    load_model(ppo)  # an adapter of an adapter


def test_what_an_adapter_was_trained_to_is_what_eval_and_the_next_stage_see(runs, chat):
    trained = json.loads((chat / "metrics.json").read_text())["after"]["eval_loss"]
    on = json.loads((runs("sft", "on", "sft", from_weight=chat, max_steps=1) / "metrics.json").read_text())
    assert on["before"]["eval_loss"] == pytest.approx(trained, abs=1e-4)
    taught = runs("distill", "taught", "sft", preset="nano", teacher_model_name_or_path=chat, max_steps=1)
    assert (taught / "model.safetensors").is_file()


def test_an_adapter_of_weights_that_are_saved_nowhere_is_refused(runs, capsys):
    with pytest.raises(SystemExit) as end:
        runs("sft", "nowhere", "sft", preset="nano", **LORA)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "error: --use_peft: an adapter belongs to a checkpoint, and --preset saves none" in error
    assert not (runs.folder / "nowhere").exists()


def test_checkpoints_whose_weights_are_not_finite_are_not_blamed_on_the_batch(runs, base, full, capsys):
    """Neither at the start nor on a resume."""
    checkpoint = shutil.copytree(full.folder / "checkpoint-2", runs.folder / "broken" / "checkpoint-2")
    state = load_file(checkpoint / "model.safetensors")
    state["model.embed_tokens.weight"][0] = float("nan")
    (checkpoint / "checksums.json").unlink()  # as transformers alone would save it
    save_file(state, checkpoint / "model.safetensors", {"format": "pt"})
    for start in ({"from_weight": checkpoint}, {"from_weight": base, "resume": checkpoint, "max_steps": 3}):
        with pytest.raises(SystemExit) as end:
            runs("sft", "broken" if "resume" in start else "new", "sft", **start)
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert "NaN or infinite values in 1 tensor(s): model.embed_tokens.weight" in error and "batch" not in error


# --- model cards ------------------------------------------------------------------------------------------------------


def test_the_card_of_a_base_model_shows_no_chat(base, capsys):
    card = card_of(base)
    assert card.data.library_name == "transformers" and card.data.license == "apache-2.0"
    assert card.data.base_model is None and card.data.pipeline_tag == "text-generation"
    assert "This model starts from scratch (the preset nano)." in card.text
    assert "was trained with TRL's SFTTrainer (stage: pretrain)." in card.text
    assert "generate" not in quick_start(base) and "messages" not in quick_start(base)
    assert float(run_quick_start(base, capsys)) > 0


def test_the_card_of_a_chat_model_answers(base, full, capsys):
    card, code = card_of(full.folder), quick_start(full.folder)
    assert card.data.library_name == "transformers" and card.data.base_model == str(base)
    assert card.data.license == "apache-2.0"  # its base model's
    assert f"This model starts from `{base}`." in card.text
    assert "model.generate(" in code and f'name = "{full.folder}"' in code
    run_quick_start(full.folder, capsys)


def test_the_hub_reads_a_card_s_figures(full):
    data = card_of(full.folder).data
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results["loss"] == pytest.approx(full.metrics["after"]["eval_loss"]) and "runtime" not in results
    assert data.model_name == "full" and data.datasets is None  # the rows are local files


def test_a_recipe_pushes_its_checkpoints_and_its_end(runs, monkeypatch):
    with UploadHub() as hub:
        hub.use(monkeypatch)
        options = {"push_to_hub": True, "hub_model_id": "me/it", "hub_private_repo": True}
        options |= {"hub_strategy": "every_save", "hub_always_push": True}  # else a slow push has the next one left out
        folder = runs("pretrain", "pushed", "pretrain", preset="nano", packing=False, **options)
        pushed = [tree for tree in hub.repos["models/me/it"].commits.values() if "model.safetensors" in tree]
        files = hub.files("models/me/it")
    assert len(pushed) >= 2 and len({tree["model.safetensors"] for tree in pushed}) == 2  # of steps 1 and 2
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert {"mixture.lock.json", "metrics.json", "recipe.json", "README.md", "tokenizer.json"} < set(files)
    assert b"model-index" in files["README.md"] and b'name = "me/it"' in files["README.md"]
    assert not any(hub.token.encode() in content for content in files.values())
    assert hub.repos["models/me/it"].private


def test_the_card_of_an_adapter_names_its_library_and_its_base_model(base, chat, capsys):
    card = card_of(chat)
    assert card.data.library_name == "peft" and card.data.base_model == str(base) and "lora" in card.data.tags
    assert "AutoPeftModelForCausalLM.from_pretrained(name, trust_remote_code=True)" in quick_start(chat)
    run_quick_start(chat, capsys)


def test_the_card_of_a_reward_model_gives_a_number(runs, base, reward, capsys):
    card = card_of(reward)
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-classification"
    assert "load_model(name, MiniMindForSequenceClassification)" in quick_start(reward)  # PEFT loads no chain
    float(run_quick_start(reward, capsys))
    for name, options in (("whole_reward", {}), ("adapter_reward", LORA)):
        folder = runs("reward", name, "reward", from_weight=base, **options)
        assert "generate" not in quick_start(folder)
        score = float(run_quick_start(folder, capsys))
        reward_model = RewardModel(str(folder), low=-99, high=99)
        asked = [user("What is the capital of France?")], [assistant("Paris.")]
        assert score == pytest.approx(reward_model(*asked)[0], abs=1e-4)


def test_while_a_run_goes_on_its_card_points_at_a_checkpoint(full):
    first, second, last = full.cards
    assert f'name = "{full.folder}/checkpoint-1"' in first and f'name = "{full.folder}/checkpoint-2"' in second
    assert "Training has not ended yet." in first and "Training has not ended yet." not in last
    assert f'name = "{full.folder}"' in last and "| loss | " in last


def test_imports_are_those_that_the_code_uses():
    assert (
        _imports("AutoTokenizer AutoModelForCausalLM") == "from transformers import AutoModelForCausalLM, AutoTokenizer"
    )


# --- curves and lines -------------------------------------------------------------------------------------------------


def test_curves_begin_before_training_and_have_whole_steps(full, tmp_path, monkeypatch):
    axes = full.figures[0].axes
    [held_out] = [line for line in axes[0].lines if line.get_label() == "held out"]
    assert held_out.get_xdata().tolist()[0] == 0
    assert held_out.get_ydata()[0] == full.metrics["before"]["eval_loss"]
    assert held_out.get_ydata()[-1] == full.metrics["after"]["eval_loss"]
    assert axes[0].get_xlim() == (0, 2)
    assert all(tick == int(tick) for tick in axes[-1].get_xticks())
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), path.touch()))
    write_curves([{"step": 1, "loss": 2.0}], tmp_path / "one.png")
    assert drawn[0].axes[0].get_xlim() == (0, 1)


def test_lines_of_an_evaluation_have_at_most_five_figures(full):
    lines = [line for line in full.lines if "eval: " in line or line.startswith("held-out ")]
    assert len(lines) >= 4
    for line in lines:
        assert 1 <= len(re.findall(r"[a-z_/]+ -?[\d.,e-]+(?=,|$)", line.partition(": ")[2])) <= 5, line


def test_the_figures_that_matter_come_first():
    figures = {f"eval_other_{n}": 1.0 for n in range(9)} | {"eval_loss": 0.89512, "eval_perplexity": 2.44764}
    line = main_figures(figures | {"eval_num_tokens": 12345, "eval_token_accuracy": 0.71, "eval_runtime": 3.0})
    assert line == "loss 0.8951, perplexity 2.448, token_accuracy 0.7100, other_0 1.000, other_1 1.000"
    online = {"eval_reward": 0.5, "eval_loss": 0.0, "eval_kl": 1e-5}
    assert main_figures(online) == "reward 0.5000, kl 1.0e-05"
    assert main_figures({"loss": 1.0}) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.895123, "0.8951"), (12.3456, "12.35"), (-0.5, "-0.5000"), (0.0123456, "0.0123"), (3.14e-5, "3.1e-05")),
        *((1234567.89, "1,234,568"), (1234567, "1,234,567"), (0.0, "0"), (float("nan"), "nan")),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value, text):
    assert short_number(value) == text


# --- WandB ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "phase", "options", "project"),
    [
        ("midtrain", "pretrain", {}, "MiniMind-Midtrain"),
        ("pretrain", "pretrain", {}, "MiniMind-Pretrain"),
        ("sft", "sft", {"assistant_only_loss": False}, "MiniMind-SFT"),
        ("midtrain", "pretrain", {"wandb_project": "mine"}, "mine"),
    ],
)
def test_each_stage_reports_to_its_own_project(runs, base, monkeypatch, recipe, phase, options, project):
    monkeypatch.setenv("WANDB_MODE", "offline")
    projects = []
    monkeypatch.setattr("minimind_trl.run.Run.finish", lambda *_: projects.append(os.environ["WANDB_PROJECT"]))
    runs(recipe, f"project-{recipe}", phase, from_weight=base, use_wandb=True, **options)
    assert projects == [project]
