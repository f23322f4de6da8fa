"""Do GRPO, PPO and SPO learn? Held-out reward before and after, from one checkpoint, at equal generated tokens.

    python benchmarks/rl.py [--from_weight PRETRAINED] [--seeds 1 2 3] [--jobs 2] [--plot FILE.png] [--output FILE.json]
    python benchmarks/rl.py --quick [--from_weight PRETRAINED]

The start is the tiny preset (1M parameters), pretrained (by recipes/pretrain.py, or `--from_weight`) and briefly
fine-tuned, so that there is headroom. A rollout is 256 answers to prompts of the embedded tasks (GRPO: eight to each of
32). Every method takes as many of them (the opponent's answers in self-play come on top), and is rewarded by the share
of words in their place. The held-out reward is that of sampled answers, four to each of 450 prompts that no stage has
seen; the intervals are of the mean over prompts, the spread is of the seeds.

`--quick` is one seed of GRPO, PPO and SPO, 7 to 9 minutes; it exits with 1 if one of them does not gain.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROLLOUTS, BATCH, ANSWERS = 100, 256, 4
METHODS = ("GRPO", "PPO", "SPO (prompt)", "SPO (global)", "SPO (self-play)")
QUICK = ("PPO", "SPO (prompt)", "GRPO")  # the slowest first, so that none is left alone at the end


def trainer_of(method: str):
    from minimind_trl import trainers

    options = {
        "GRPO": {"num_generations": 8},
        "PPO": {
            "num_mini_batches": 2,
            "num_ppo_epochs": 1,
            "critic_learning_rate": 1e-3,
            "kl_coef": 0.01,
            "vf_coef": 0.5,
        },
        "SPO (prompt)": {},
        "SPO (global)": {"tracker": "global"},
        "SPO (self-play)": {"opponent": "snapshot", "opponent_interval": 25},
    }[method]
    kind = method.partition(" ")[0]
    if kind == "GRPO":
        return trainers.MiniMindGRPOTrainer, trainers.RolloutConfig, options
    return getattr(trainers, f"{kind}Trainer"), getattr(trainers, f"{kind}Config"), options


def measure(method: str, seed: int, start: str, rollouts: int) -> dict:
    from datasets import DatasetDict
    from transformers import AutoTokenizer

    from minimind_trl.data import DatasetMixer
    from minimind_trl.models import load_model
    from minimind_trl.rewards import load_rewards

    tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
    data: DatasetDict = DatasetMixer.from_yaml("data_configs/tiny/rlaif.yaml").build(tokenizer)
    trainer_class, config_class, options = trainer_of(method)
    steps = rollouts * options.get("num_mini_batches", 1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            load_model(start),
            load_rewards(["position_match"])[0],
            config_class(
                folder,
                seed=seed,
                max_steps=steps,
                per_device_train_batch_size=BATCH // options.get("num_mini_batches", 1),
                per_device_eval_batch_size=300,
                max_completion_length=16,
                learning_rate=7e-4,
                lr_scheduler_type="linear",
                warmup_steps=5,
                adam_beta2=0.95,
                eval_temperature=1.0,
                num_generations_eval=ANSWERS,
                eval_strategy="steps",
                eval_steps=steps // 4,
                logging_steps=steps // 10,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                **options,
            ),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
        )
        before = trainer.evaluate()
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    curve = [(0, before["eval_reward"])]
    tokens = 0
    for log in trainer.state.log_history:
        tokens = log.get("num_tokens_generated", tokens)
        if "eval_reward" in log and log["step"]:
            curve.append((log["step"] * rollouts / steps, log["eval_reward"]))
    after = [log for log in trainer.state.log_history if "eval_reward" in log][-1]
    return {
        "method": method,
        "seed": seed,
        "before": before["eval_reward"],
        "after": after["eval_reward"],
        "half_interval": 1.96 * after["eval_reward_std"] / math.sqrt(after["eval_prompts"]),
        "win_rate": after.get("eval_win_rate"),
        "kl": after.get("eval_kl"),
        "tokens": trainer.num_tokens_generated,
        "seconds": seconds,
        "curve": curve,
    }


def make_start(pretrained: str | None, folder: Path) -> str:
    """A checkpoint that is fine-tuned for 90 steps only."""

    def recipe(name: str, *options: str) -> str:
        out = str(folder / name)
        config = ["--config", f"recipes/configs/{name}/tiny.yaml", "--output_dir", out, "--eval_interval", "0"]
        done = subprocess.run([sys.executable, f"recipes/{name}.py", *config, *options], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"recipes/{name}.py failed:\n{done.stderr}")
        return out

    pretrained = pretrained or recipe("pretrain")
    return recipe("sft", "--from_weight", pretrained, "--max_steps", "90", "--warmup_steps", "10")


def run_all(args: argparse.Namespace, start: str) -> list[dict]:
    """Every method and seed in a process of its own, `--jobs` at a time."""
    jobs = [(method, seed) for seed in args.seeds for method in args.methods]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max((os.cpu_count() or 1) // args.jobs, 1))

    def one(job: tuple[str, int]) -> dict:
        command = [sys.executable, __file__, "--measure", *map(str, job), start, str(args.rollouts)]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{job} failed:\n{done.stderr}")
        result = json.loads(done.stdout.splitlines()[-1])
        print(f"{job}: {result['before']:.3f} -> {result['after']:.3f}, {result['seconds']:.0f} s", file=sys.stderr)
        return result

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(one, jobs))


def table(results: list[dict], methods: list[str]) -> str:
    lines = [
        "| method | held-out reward before | after (95%) | mean gain | gains | tokens generated | s | wins |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in methods:
        runs = [run for run in results if run["method"] == method]
        mean = {
            key: statistics.mean(run[key] for run in runs) for key in ("before", "after", "half_interval", "seconds")
        }
        gains = [run["after"] - run["before"] for run in runs]
        wins = [run["win_rate"] for run in runs if run["win_rate"] is not None]
        lines.append(
            f"| {method} | {mean['before']:.3f} | {mean['after']:.3f} (+-{mean['half_interval']:.3f}) "
            f"| {statistics.mean(gains):+.3f} | {', '.join(f'{gain:+.3f}' for gain in gains)} "
            f"| {statistics.mean(run['tokens'] for run in runs):,.0f} | {mean['seconds']:.0f} "
            f"| {', '.join(f'{win:.2f}' for win in wins) or '-'} |"
        )
    return "\n".join(lines)


def draw(results: list[dict], methods: list[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for method in methods:
        curves = [run["curve"] for run in results if run["method"] == method]
        answers = [step * BATCH for step, _ in curves[0]]
        values = list(zip(*([reward for _, reward in curve] for curve in curves), strict=True))
        [line] = axis.plot(answers, [statistics.mean(row) for row in values], marker=".", label=method)
        axis.fill_between(
            answers, [min(r) for r in values], [max(r) for r in values], alpha=0.15, color=line.get_color()
        )
    axis.set_xlabel("answers generated")
    axis.set_ylabel("held-out reward of sampled answers")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        method, seed, start, rollouts = sys.argv[2:]
        print(json.dumps(measure(method, int(seed), start, int(rollouts))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from_weight", help="a pretrained tiny checkpoint; default: pretrain one (3 minutes)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; they share the cores")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.rollouts < 4 or args.rollouts % 4:
        parser.error(f"--rollouts {args.rollouts}: a multiple of 4, or the last evaluation would not be at the end")
    if args.quick:
        args.methods, args.seeds, args.rollouts = list(QUICK), args.seeds[:1], 60
    with tempfile.TemporaryDirectory() as folder:
        results = run_all(args, make_start(args.from_weight, Path(folder)))
    print(table(results, args.methods))
    if args.plot:
        draw(results, args.methods, args.plot)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    flat = [run["method"] for run in results if run["after"] - run["before"] <= run["half_interval"]]
    if args.quick and flat:
        sys.exit(f"no gain beyond the interval: {', '.join(flat)}")


if __name__ == "__main__":
    main()
