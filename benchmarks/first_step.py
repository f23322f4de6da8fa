"""Seconds from raw JSONL to the first step of a recipe, beside TRL alone on the same rows.

    python benchmarks/first_step.py [--stages sft pretrain] [--rows 20000] [--cores 1 2] [--repeats 1] [--output FILE]

Generated conversations of two turns (mean 260 tokens), texts (mean 320), pairs of such conversations (stages dpo and
reward), or prompts (grpo); a tiny model; rows of at most 512 tokens, for sft and pretrain packed:

- `ours`: the recipe of the stage on an empty cache, flight check included,
- `ours again`: the same in a new process, on the cache that `ours` left,
- `TRL`: `load_dataset`, a random split, and TRL's trainer. SFTTrainer tokenizes (with the assistant's mask) and packs,
  DPOTrainer and RewardTrainer tokenize; GRPOTrainer tokenizes prompts when it answers them, after the first step began.

Every measurement is a process of its own on so many cores, with its own cache, in turns; the table shows medians. Time
starts after the imports and ends where the first step begins. CPU seconds include those of worker processes, memory is
that of the main process. Prints a markdown table. Linux only.
"""

import argparse
import copy
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mixer import Anonymous, cpu_seconds  # the script beside this one

REPOSITORY = Path(__file__).parents[1]
STAGES = ("sft", "pretrain", "dpo", "reward", "grpo")
METHODS = ("ours", "ours again", "TRL")
LIMIT = 512
MIXTURE = """
metadata: {{phase: {stage}, max_seq_length: {limit}}}
datasets: [{{name: rows, source: rows.jsonl, mix_ratio: 1.0}}]
validation: {{ratio: 0.01, seed: 42}}
"""


class FirstStep(Exception):
    """Raised where the first step begins."""


def make_data(folder: Path, stage: str, rows: int) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 7))) for _ in range(5000)]

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(rows):
            if stage == "pretrain":
                row = {"text": text(20, 100)}
            else:
                asked, answer = [{"role": "user", "content": text(5, 20)}], assistant(text(10, 70))
                row = {"prompt": asked} if stage == "grpo" else {"conversations": asked + answer}
                if stage in ("dpo", "reward"):
                    row = {"prompt": asked, "chosen": answer, "rejected": assistant(text(10, 70))}
            file.write(json.dumps(row) + "\n")
    phase = {"grpo": "rlaif"}.get(stage, stage)
    (folder / "mixture.yaml").write_text(MIXTURE.format(stage=phase, limit=LIMIT))


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def length_reward(completions, **_) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def stop_at_first_step() -> type:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            raise FirstStep

    return Stop


def options(output: Path, stage: str) -> dict[str, object]:
    common = {
        "output_dir": str(output),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    if stage == "grpo":
        return common | {"num_generations": 2, "max_completion_length": 8}
    return common | {"max_length": LIMIT} | ({"packing": True} if stage in ("sft", "pretrain") else {})


def ours(folder: Path, output: Path, stage: str):
    sys.path.insert(0, str(REPOSITORY))
    from minimind_trl import run as recipes
    from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
    from minimind_trl.run import Run, parse_arguments
    from minimind_trl.run.online_configs import GRPORecipeConfig
    from minimind_trl.run.rl_run import RLRun
    from minimind_trl.tokenization import tiny_tokenizer
    from minimind_trl.trainers import (
        MiniMindDPOTrainer,
        MiniMindGRPOTrainer,
        MiniMindRewardTrainer,
        MiniMindSFTTrainer,
    )

    start = ["--preset", "nano"]
    if stage in ("dpo", "reward", "grpo"):  # which begin with a checkpoint
        MiniMindForCausalLM(MiniMindConfig.from_preset("nano")).save_pretrained(output / "start")
        tiny_tokenizer().save_pretrained(output / "start")
        start = ["--from_weight", str(output / "start")]
    config_class, trainer_class = {
        "sft": (recipes.SFTRecipeConfig, MiniMindSFTTrainer),
        "pretrain": (recipes.PretrainRecipeConfig, MiniMindSFTTrainer),
        "dpo": (recipes.DPORecipeConfig, MiniMindDPOTrainer),
        "reward": (recipes.RewardRecipeConfig, MiniMindRewardTrainer),
        "grpo": (GRPORecipeConfig, MiniMindGRPOTrainer),
    }[stage]
    given = options(output / "run", stage) | {"data_config": folder / "mixture.yaml", "eval_interval": 0}
    given = start + [part for name, value in given.items() for part in (f"--{name}", str(value))]
    if stage == "grpo":
        given += ["--reward_funcs", "first_step:length_reward", "--allow_equal_rewards", "true"]

    def work() -> int:
        args, config, lora = parse_arguments(config_class, options=given)
        more = {"reward_model": True} if stage == "reward" else {}
        run = (RLRun if stage == "grpo" else Run)(args, config, lora, **more)
        data = run.load_data("rlaif" if stage == "grpo" else stage)
        packs = trainer_class is MiniMindSFTTrainer
        if packs:
            more = {"on_long": run.mixer.on_long}
        elif stage == "dpo":
            more = {"ref_model": copy.deepcopy(run.model)}
        else:
            more = {"reward_funcs": run.reward_funcs} if stage == "grpo" else {}
        trainer = trainer_class(
            model=run.model,
            args=config,
            processing_class=run.training_tokenizer if packs else run.tokenizer,
            train_dataset=data.train,
            eval_dataset=data.validation,
            **more,
        )
        return steps_begun(trainer, lambda: run.finish(trainer))

    return work


def trl_alone(folder: Path, output: Path, stage: str):
    from datasets import disable_progress_bars, load_dataset
    from trl import (
        DPOConfig,
        DPOTrainer,
        GRPOConfig,
        GRPOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )

    from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM, MiniMindForSequenceClassification
    from minimind_trl.tokenization import prepared_for_trl, tiny_tokenizer

    disable_progress_bars()
    config_class, trainer_class = {
        "dpo": (DPOConfig, DPOTrainer),
        "reward": (RewardConfig, RewardTrainer),
        "grpo": (GRPOConfig, GRPOTrainer),
    }.get(stage, (SFTConfig, SFTTrainer))

    def work() -> int:
        rows = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train")
        rows = rows.train_test_split(test_size=0.01, seed=42)["train"]
        if stage == "sft":
            rows = rows.rename_column("conversations", "messages")
        tokenizer, config = prepared_for_trl(tiny_tokenizer()), MiniMindConfig.from_preset("nano")
        config.num_labels = 1 if stage == "reward" else config.num_labels
        model = (MiniMindForSequenceClassification if stage == "reward" else MiniMindForCausalLM)(config)
        args = config_class(**options(output / "run", stage))
        if trainer_class is SFTTrainer:
            args.assistant_only_loss = stage == "sft"
        processes = len(os.sched_getaffinity(0))
        if stage != "grpo":
            args.dataset_num_proc = processes if processes > 1 else None
        more = {"reward_funcs": length_reward} if stage == "grpo" else {}
        if stage == "dpo":
            more = {"ref_model": copy.deepcopy(model)}
        trainer = trainer_class(model, args=args, train_dataset=rows, processing_class=tokenizer, **more)
        return steps_begun(trainer, trainer.train)

    return work


def steps_begun(trainer, train) -> int:
    """Train up to where the first step begins; returns the rows to train on."""
    trainer.add_callback(stop_at_first_step())
    try:
        train()
    except FirstStep:
        return len(trainer.train_dataset)
    raise RuntimeError("no step began")


def measure(method: str, stage: str, folder: Path, output: Path, cores: int) -> dict[str, float]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    work = (trl_alone if method == "TRL" else ours)(folder, output, stage)
    before, started, memory = cpu_seconds(), time.perf_counter(), Anonymous()
    with memory:
        rows = work()
    return {
        "cpu_s": cpu_seconds() - before,
        "wall_s": time.perf_counter() - started,
        "rows_to_train": rows,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "anonymous_mb": memory.peak,
    }


def in_new_process(method: str, stage: str, folder: Path, cache: Path, cores: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as output:
        variables = {"HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        variables |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--measure", method, stage, str(folder), output, str(cores)]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(stage: str, rows: int, cores: int, repeats: int, methods: list[str]) -> dict[str, dict[str, float]]:
    """Medians of every method."""
    runs: dict[str, list] = {method: [] for method in methods}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, stage, rows)
        for _ in range(repeats):
            for method in methods:
                cache = folder / ("TRL" if method == "TRL" else "ours-cache")
                if method != "ours again":
                    shutil.rmtree(cache, ignore_errors=True)
                runs[method].append(in_new_process(method, stage, folder, cache, cores))
                print(f"{stage}, {rows:,} rows, {cores} cores, {method}: {runs[method][-1]}", file=sys.stderr)
    return {
        method: {name: statistics.median(run[name] for run in found) for name in found[0]}
        for method, found in runs.items()
    }


def table(results: list[dict]) -> str:
    columns = ["stage", "rows", "cores", "method", "CPU s", "wall s", "CPU ms a row", "rows to train", "peak RSS MB"]
    columns.append("of it anonymous")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for one in results:
        for method, found in one["methods"].items():
            cells = [one["stage"], f"{one['rows']:,}", f"{one['cores']}", method, f"{found['cpu_s']:.1f}"]
            cells += [f"{found['wall_s']:.1f}", f"{found['cpu_s'] / one['rows'] * 1e3:.3f}"]
            cells += [f"{found['rows_to_train']:,.0f}", f"{found['rss_mb']:,.0f}", f"{found['anonymous_mb']:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["sft", "pretrain"])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path, help="the figures as JSON")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        method, stage, folder, output, cores = args.measure
        found = measure(method, stage, Path(folder), Path(output), int(cores))
        print(f"\n{json.dumps(found)}")
        return
    results = [
        {"stage": stage, "rows": rows, "cores": cores}
        | {"methods": compare(stage, rows, cores, args.repeats, args.methods)}
        for stage in args.stages
        for rows in args.rows
        for cores in args.cores
    ]
    print(table(results))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
