"""Run every stage on the embedded data and measure it before and after; `make demo` runs this.

    python -m minimind_trl.commands.demo --output_dir runs/demo

Start it in the repository's top folder: it runs the recipes there.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from datasets import Dataset, disable_progress_bars
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from transformers import logging as transformers_logging

from ..data import DatasetMixer
from ..errors import InputError
from ..evaluation import exact_match_by_skill
from ..files import atomic_path
from ..models import MiniMindConfig, MiniMindForCausalLM, load_model
from ..run import run_recipe
from ..tokenization import tiny_tokenizer

_PROMPTS = "data_configs/tiny/sft.yaml"  # every stage answers its held-out prompts
# For each stage: the stage that it starts from, and its held-out figure.
_STAGES = {
    "pretrain": (None, "loss"),
    "midtrain": ("pretrain", "loss"),
    "sft": ("midtrain", "loss"),
    "reward": ("sft", "accuracy"),
    "dpo": ("sft", "rewards/accuracies"),
    "grpo": ("dpo", "reward"),
    "ppo": ("dpo", "reward"),
    "spo": ("dpo", "reward"),
}
_RL = ("grpo", "ppo", "spo")


def run_demo(output_dir: Path, rl_steps: int | None = None) -> dict:
    """Run every stage; report its held-out figures before and after, and its answers to held-out prompts.

    Args:
        output_dir: gets a folder for each stage.
        rl_steps: steps of GRPO, PPO and SPO; default: as in their configs.

    Returns:
        the report, also written to `output_dir` as `report.json`, `report.md` and `report.png`.

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
    started = time.monotonic()
    tokenizer = tiny_tokenizer()
    prompts = DatasetMixer.from_yaml(_PROMPTS).build(tokenizer)["validation"]

    untrained = MiniMindForCausalLM(MiniMindConfig.from_preset("tiny", vocab_size=len(tokenizer)))
    report: dict = {"stages": [], "exact_match": {"untrained": exact_match_by_skill(untrained, tokenizer, prompts)}}
    for stage, (parent, figure) in _STAGES.items():
        folder = output_dir / stage
        start = ["--from_weight", str(output_dir / parent)] if parent else []
        steps = ["--max_steps", str(rl_steps)] if rl_steps and stage in _RL else []
        seconds = _run_stage(stage, ["--output_dir", str(folder), *start, *steps])
        metrics = json.loads((folder / "metrics.json").read_text())
        report["stages"].append({"stage": stage, "figure": figure, "seconds": round(seconds, 1), **metrics})
        if stage != "reward":  # a reward model gives numbers, not answers
            report["exact_match"][stage] = _ask(folder, tokenizer, prompts)
    report["seconds"] = round(time.monotonic() - started, 1)
    _write_report(report, output_dir)
    return report


def _run_stage(stage: str, options: list[str]) -> float:
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"),
        *(f"recipes/{stage}.py", "--config", f"recipes/configs/{stage}/tiny.yaml", *options),
    ]
    print(f"\n--- {stage}: accelerate launch {' '.join(command[3:])}", flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - started


def _ask(folder: Path, tokenizer, prompts: Dataset) -> dict:
    return exact_match_by_skill(load_model(folder), tokenizer, prompts)


def _write_report(report: dict, output_dir: Path) -> None:
    table = _table(report)
    with (output_dir / "report.md").open("w", encoding="utf-8") as file:
        console = Console(file=file, width=140)
        console.print("# minimind-trl demo\n\n```")
        console.print(table, _skills(report))
        picture = "![answers to held-out prompts](report.png)"
        console.print(f"```\n\n{picture}\n\nTook {report['seconds']:.0f} s, evaluation included.", markup=False)
    (output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _draw(report, output_dir / "report.png")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"took {report['seconds']:.0f} s; report in {output_dir / 'report.md'}")


def _table(report: dict) -> Table:
    prompts = report["exact_match"]["untrained"]["all"]["prompts"]
    table = Table(title=f"each stage on held-out data, and its greedy answers to {prompts} held-out prompts")
    for column in ("stage", "figure", "before", "after", "reward", "exact match", "seconds"):
        table.add_column(column, justify="left" if column in ("stage", "figure") else "right")
    table.add_row("untrained", "", "", "", *_answered(report, "untrained"), "")
    for stage in report["stages"]:
        before, after = (f"{stage[when]['eval_' + stage['figure']]:.3f}" for when in ("before", "after"))
        answered = _answered(report, stage["stage"])
        table.add_row(stage["stage"], stage["figure"], before, after, *answered, f"{stage['seconds']:.0f}")
    return table


def _answered(report: dict, stage: str) -> tuple[str, str]:
    if stage not in report["exact_match"]:
        return "", ""
    figures = report["exact_match"][stage]["all"]
    return f"{figures['position_score']:.3f}", f"{figures['exact_match']:.0%}"


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
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    for shift, (name, label) in enumerate((("position_score", "reward"), ("exact_match", "exact match"))):
        values = [report["exact_match"][stage]["all"][name] for stage in stages]
        bars = axis.bar([place + 0.4 * shift - 0.2 for place in range(len(stages))], values, 0.4, label=label)
        axis.bar_label(bars, fmt="%.2f", fontsize=7)
    axis.set_xticks(range(len(stages)), stages)
    axis.set_ylabel("held-out prompts, greedy answers")
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--rl_steps", type=int, help="steps of GRPO, PPO and SPO (default: as in their configs)")
    args = parser.parse_args()
    run_demo(args.output_dir, args.rl_steps)


if __name__ == "__main__":
    run_recipe(main)
