"""Every stage on the embedded data, measured before and after; `make demo` runs this."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import disable_progress_bars
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from transformers import logging as transformers_logging

from ..data import DatasetMixer
from ..errors import InputError
from ..evaluation import exact_match_by_skill, generate_answers
from ..evaluation.measures import wilson
from ..files import atomic_path
from ..models import MiniMindConfig, MiniMindForCausalLM, load_model
from ..reports import RunFolder
from ..reports.figure_table import figure_rows
from ..reports.page import write_report
from ..tokenization import tiny_tokenizer

_PROMPTS = "data_configs/tiny/sft.yaml"  # every stage answers its held-out prompts
_RL_PROMPTS = "data_configs/tiny/rlaif.yaml"
_RL = ("grpo", "ppo", "spo")


@dataclass(frozen=True)
class _Stage:
    name: str
    figure: str  # held out
    start: str | None = None  # the stage whose checkpoint it trains
    recipe: str = ""  # if it is not the name
    changes: dict[str, Any] = field(default_factory=dict)  # of the recipe's config; None removes an option
    config: str = ""  # if it is not that of the recipe
    is_control: bool = False  # the same rows, steps and seed without what the demo shows the worth of

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "_")


_FROM_SCRATCH = {"from_weight": None, "preset": "tiny"}
# Without a teacher a student has the labelled answers only.
_ALONE = {"data_config": _PROMPTS, "teacher_model_name_or_path": None, "packing": False}
_STAGES = (
    _Stage("pretrain", "loss"),
    _Stage("midtrain", "loss", "pretrain"),
    _Stage("sft", "loss", "midtrain"),
    _Stage("sft from pretrain", "loss", "pretrain", "sft", is_control=True),
    _Stage("sft from scratch", "loss", None, "sft", _FROM_SCRATCH, is_control=True),
    _Stage("reward", "accuracy", "sft"),
    _Stage("dpo", "rewards/accuracies", "sft"),
    _Stage("grpo", "reward", "dpo"),
    _Stage("ppo", "reward", "dpo"),
    _Stage("spo", "reward", "dpo"),
    _Stage("distill", "divergence"),
    _Stage("student alone", "loss", None, "sft", _ALONE, "distill", is_control=True),
)


def run_demo(output_dir: Path, rl_steps: int | None = None, seed: int = 42) -> dict:
    """Run every stage; report its held-out figures before and after, and its answers to held-out prompts.

    Args:
        output_dir: gets a folder for each stage.
        rl_steps: steps of GRPO, PPO and SPO; default: as in their configs.
        seed: of every recipe.

    Returns:
        the report, also written to `output_dir` as `report.json`, `report.md`, `report.png` and `report.html`.

    Raises:
        InputError: not started in the repository, or the folder is not empty.
        subprocess.CalledProcessError: a stage failed; its own output says why.
    """
    if not Path("recipes/pretrain.py").is_file():
        raise InputError("the demo runs the recipes of the repository; start it in its top folder")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(f"--output_dir {output_dir} is not empty; give a new one or remove it")
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()
    output_dir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tokenizer = tiny_tokenizer()
    prompts = DatasetMixer.from_yaml(_PROMPTS).build(tokenizer)["validation"]

    untrained = MiniMindForCausalLM(MiniMindConfig.from_preset("tiny", vocab_size=len(tokenizer)))
    answers = {"untrained": exact_match_by_skill(untrained, tokenizer, prompts)}
    report: dict = {"seed": seed, "stages": [], "exact_match": answers}
    for stage in _STAGES:
        folder = output_dir / stage.folder
        changes = {"seed": seed, "output_dir": str(folder), **stage.changes}
        if stage.start:
            changes["from_weight"] = str(output_dir / stage.start)
        if stage.name == "distill":
            report["teacher"] = max(_RL, key=lambda name: _after(report, name)["eval_reward"])
            changes |= _teach(output_dir / report["teacher"], tokenizer, output_dir / "taught")
        if rl_steps and stage.name in _RL:
            changes["max_steps"] = rl_steps
        seconds = _run_stage(stage, changes, output_dir)
        run = RunFolder.read(folder)
        kept = {"stage": stage.name, "start": stage.start, "figure": stage.figure, "control": stage.is_control}
        kept |= {"reach": _reaches(run, stage.figure), "seconds": round(seconds, 1)}
        report["stages"].append({**kept, **run.metrics})
        if stage.name != "reward":  # a reward model gives numbers, not answers
            answers[stage.name] = exact_match_by_skill(load_model(folder), tokenizer, prompts)
    report["seconds"] = round(time.monotonic() - started, 1)
    _write_report(report, output_dir)
    return report


def _teach(teacher: Path, tokenizer, folder: Path) -> dict[str, str]:
    """Let a teacher answer the prompts of RL; return the options of a student that learns these answers."""
    data = DatasetMixer.from_yaml(_RL_PROMPTS).build(tokenizer)
    folder.mkdir()
    for split in ("train", "validation"):
        prompts = data[split]["prompt"]
        answers = data[split]["answer"]  # held out, the right answers count
        if split == "train":
            answers = generate_answers(load_model(teacher), tokenizer, prompts, max_new_tokens=16)
        rows = [
            json.dumps({"messages": [*prompt, {"role": "assistant", "content": answer}]})
            for prompt, answer in zip(prompts, answers, strict=True)
            if answer.strip()
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    source = {"name": "taught", "source": ".", "format": "jsonl", "mix_ratio": 1.0}
    source["data_files"] = {split: f"{split}.jsonl" for split in ("train", "validation")}
    mixture = {"metadata": {"phase": "distill", "max_seq_length": 128}, "datasets": [source]}
    (folder / "mixture.yaml").write_text(yaml.safe_dump(mixture, sort_keys=False), encoding="utf-8")
    return {"teacher_model_name_or_path": str(teacher), "data_config": str(folder / "mixture.yaml")}


def _after(report: dict, name: str) -> dict:
    return next(stage["after"] for stage in report["stages"] if stage["stage"] == name)


def _run_stage(stage: _Stage, changes: dict[str, Any], output_dir: Path) -> float:
    base = Path("recipes/configs", stage.config or stage.recipe or stage.name, "tiny.yaml")
    options = yaml.safe_load(base.read_text(encoding="utf-8")) | changes
    config = output_dir / f"{stage.folder}.yaml"
    given = {name: value for name, value in options.items() if value is not None}
    config.write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"),
        *(f"recipes/{stage.recipe or stage.name}.py", "--config", str(config)),
    ]
    print(f"\n--- {stage.name}: accelerate launch {' '.join(command[3:])}", flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - started


def _write_report(report: dict, output_dir: Path) -> None:
    table = _table(report)
    with (output_dir / "report.md").open("w", encoding="utf-8") as file:
        console = Console(file=file, width=180)
        console.print("# minimind-trl demo\n\n```")
        console.print(table, _skills(report))
        picture = "![answers to held-out prompts](report.png)"
        took = f"Seed {report['seed']}, {report['seconds']:.0f} s, evaluation included."
        console.print(f"```\n\n{picture}\n\n{took}", markup=False)
    (output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _draw(report, output_dir / "report.png")
    write_report([output_dir / stage.folder for stage in _STAGES], output_dir / "report.html")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"took {report['seconds']:.0f} s; report in {output_dir / 'report.html'} and report.md")


def _table(report: dict) -> Table:
    prompts = report["exact_match"]["untrained"]["all"]["prompts"]
    table = Table(title=f"each stage on held-out data, and its greedy answers to {prompts} held-out prompts")
    for column in ("stage", "from", "figure", "before", "after", "exact match", "seconds"):
        table.add_column(column, justify="left" if column in ("stage", "from", "figure") else "right")
    table.add_row("untrained", "", "", "", "", _exact_match(report, "untrained"), "")
    for stage in report["stages"]:
        name, start = stage["stage"], stage["start"] or ""
        if name == "distill":
            start = f"{report['teacher']} teaches"
        figures = [_figure(stage, when) for when in ("before", "after")]
        seconds = f"{stage['seconds']:.0f}"
        style = "dim" if stage["control"] else ""
        table.add_row(name, start, stage["figure"], *figures, _exact_match(report, name), seconds, style=style)
    return table


def _reaches(run: RunFolder, figure: str) -> dict[str, float | None]:
    """Half the 95% interval of a held-out figure before and after training; None where it has none."""
    row = next(row for row in figure_rows(run) if row.name == figure)
    measures = {"before": row.before, "after": row.after}
    return {
        when: None if measure.low is None else (measure.high - measure.low) / 2 for when, measure in measures.items()
    }


def _figure(stage: dict, when: str) -> str:
    value, reach = stage[when][f"eval_{stage['figure']}"], stage["reach"][when]
    return f"{value:.3f}" if reach is None else f"{value:.3f} ±{reach:.3f}"


def _reach(share: float, count: int) -> float:
    interval = wilson(share, count)
    return (interval.high - interval.low) / 2


def _exact_match(report: dict, stage: str) -> str:
    if stage not in report["exact_match"]:
        return ""
    figures = report["exact_match"][stage]["all"]
    return f"{figures['exact_match']:.1%} ±{_reach(figures['exact_match'], figures['prompts']):.1%}"


def _skills(report: dict) -> Table:
    answers = report["exact_match"]
    table = Table(title="exact match by skill")
    table.add_column("skill")
    for stage in answers:
        table.add_column(stage, justify="right")
    *_, last_skill, _ = answers["untrained"]
    for skill in answers["untrained"]:
        cells = [f"{answers[stage][skill]['exact_match']:.0%}" for stage in answers]
        table.add_row(skill, *cells, end_section=skill == last_skill)
    return table


def _draw(report: dict, path: Path) -> None:
    """Draw reward and exact match of every stage's answers."""
    stages = list(report["exact_match"])
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axis = figure.subplots()
    for shift, (name, label) in enumerate((("position_score", "reward"), ("exact_match", "exact match"))):
        values = [report["exact_match"][stage]["all"][name] for stage in stages]
        places = [place + 0.4 * shift - 0.2 for place in range(len(stages))]
        bars = axis.bar(places, values, 0.4, label=label)
        axis.bar_label(bars, fmt="%.2f", fontsize=7)
    axis.set_xticks(range(len(stages)), [stage.replace(" ", "\n", 1) for stage in stages])
    axis.set_ylabel("held-out prompts, greedy answers")
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
