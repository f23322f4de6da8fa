"""A model of 1M parameters learns to use tools: every stage from the tokenizer on, over seeds, with a control.

python benchmarks/tools.py --output_dir runs/tiny-tools --seeds 42 1 2    # `make demo-tools` runs seed 42 alone

Writes the data, trains a tokenizer, and for each seed runs pretraining, midtraining, SFT, RL with tools, and GRPO
without them. Prints how many held-out questions are answered exactly, how answers call tools, and answers before and
after RL. What is done already in the output folder is not run again.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from minimind_trl.reports import RunFolder

DATA = Path("data_configs/tiny-tools")
VOCABULARY = "531"  # all that the words give: each is one token


def run(*command: str) -> float:
    """Run a command; returns the CPU seconds that it took."""
    print(f"\n--- {' '.join(command)}", flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(folder: Path, recipe: str, seed: int, *options: str) -> None:
    """Run a recipe of this task, unless the folder holds its run."""
    if (folder / "metrics.json").is_file():
        return
    config = f"recipes/configs/{recipe}/tiny-tools.yaml"
    given = ("--config", config, "--output_dir", str(folder), "--seed", str(seed), *options)
    launch = ("-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml")
    seconds = run(*launch, f"recipes/{recipe}.py", *given)
    (folder / "cpu_seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def without_tools(folder: Path) -> Path:
    """The mixture of GRPO's prompts without the tools."""
    mixture = yaml.safe_load((DATA / "rlaif.yaml").read_text(encoding="utf-8"))
    [source] = mixture["datasets"]
    del source["tools"]
    source["source"] = str((DATA / "data").absolute())
    path = folder / "without_tools.yaml"
    path.write_text(yaml.safe_dump(mixture), encoding="utf-8")
    return path


def run_seed(folder: Path, tokenizer: Path, seed: int, methods: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train(folder / "pretrain", "pretrain", seed, "--tokenizer", str(tokenizer))
    train(folder / "midtrain", "midtrain", seed, "--from_weight", str(folder / "pretrain"))
    train(folder / "sft", "sft", seed, "--from_weight", str(folder / "midtrain"))
    start = ("--from_weight", str(folder / "sft"))
    for method in methods:
        train(folder / method, method, seed, *start)
    # Without tools all rewards are 0 more often than not.
    alone = ("--data_config", str(without_tools(folder)), "--allow_equal_rewards", "true")
    train(folder / "without_tools", "grpo", seed, *start, *alone)


def table(folders: list[Path], methods: list[str]) -> str:
    lines = [
        "| | exact match of each seed | mean | calls per answer | failed calls per answer | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    rows = [("after SFT", methods[0], "before", "sft")]
    rows += [(f"after {method.upper()} with tools", method, "after", method) for method in methods]
    rows.append(("after GRPO without tools", "without_tools", "after", "without_tools"))
    for name, stage, when, timed in rows:
        figures = [RunFolder.read(folder / stage).metrics[when] for folder in folders]
        exact = [one["eval_rewards/exact_match"] for one in figures]
        calls, failed = (
            statistics.mean(one.get(f"eval_tools/{key}", 0.0) for one in figures) for key in ("calls", "failed_calls")
        )
        cells = [
            name,
            ", ".join(f"{share:.1%}" for share in exact),
            f"{statistics.mean(exact):.1%}",
            f"{calls:.2f}",
            f"{failed:.2f}",
            f"{statistics.mean(_seconds(folder / timed) for folder in folders):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    spent = {
        stage: statistics.mean(_seconds(folder / stage) for folder in folders) for stage in ("pretrain", "midtrain")
    }
    before = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in spent.items())
    return "\n".join([*lines, "", f"CPU seconds before SFT: {before}."])


def transcripts(folder: Path) -> str:
    """Greedy answers to the same held-out questions before and after RL, without the results of the calls."""
    answers = [sample for sample in RunFolder.read(folder).samples if sample["kind"] == "answer"]
    before, after = ([one for one in answers if one["step"] == step["step"]] for step in (answers[0], answers[-1]))
    lines = []
    for old, new in list(zip(before, after, strict=True))[:4]:
        lines += [f"{old['prompt'][-1]['content']}  (right: {old['right']})"]
        lines += [f"  {name}: {' '.join(one['answer'].split())}" for name, one in (("before", old), ("after", new))]
    return "\n".join(lines)


def _seconds(folder: Path) -> float:
    return json.loads((folder / "cpu_seconds.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/tiny-tools"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="default: 42")
    parser.add_argument("--methods", nargs="+", choices=("grpo", "ppo", "spo"), default=["grpo"], help="default: grpo")
    args = parser.parse_args()
    if not (DATA / "data" / "rlaif_train.jsonl").is_file():
        run(str(DATA / "make_data.py"))
    tokenizer = args.output_dir / "tokenizer"
    if not tokenizer.is_dir():
        words = str(DATA / "data" / "words.jsonl")
        options = ("--vocab_size", VOCABULARY, "--output_dir", str(tokenizer))
        run("-m", "minimind_trl.cli", "tokenizer", "train", words, *options)
    folders = [args.output_dir / f"seed_{seed}" for seed in args.seeds]
    for folder, seed in zip(folders, args.seeds, strict=True):
        run_seed(folder, tokenizer, seed, args.methods)
    print(f"\n{table(folders, args.methods)}\n\n{transcripts(folders[0] / args.methods[0])}")


if __name__ == "__main__":
    main()
