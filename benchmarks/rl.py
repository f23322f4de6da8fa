"""Do online methods learn, and at what cost? Held-out reward over optimizer steps, tokens and seconds.

    python benchmarks/rl.py [--from_weight PRETRAINED] [--seeds 1 2 3] [--jobs 2] [--plot FILE.png] [--output FILE.json]
    python benchmarks/rl.py --quick [--from_weight PRETRAINED]

The start is the tiny preset (1M parameters), pretrained (by recipes/pretrain.py, or `--from_weight`) and briefly
fine-tuned, so that there is headroom; or `--start`, a fine-tuned checkpoint. A rollout is 256 answers to prompts of the
embedded tasks (GRPO, CISPO and RLOO: eight to each of 32). Every method takes as many rollouts and one optimizer step
on each, at the same learning rate, and is rewarded by the share of words in their place. RLOO is TRL's RLOOTrainer on
the checkpoint's Qwen3 twin, the others are this package's.

The held-out reward is that of sampled answers, four to each prompt of the validation split; the intervals are of the
mean over prompts. The first table compares after the same number of steps, and at the number of generated tokens that
all have reached. The leaderboard says how many tokens and seconds a method needed to a held-out reward, by default
0.40, interpolated between evaluations. Seconds are CPU seconds of training, without evaluation: with a core a job they
are those of an idle machine. (Answers of the opponent in self-play are not counted as tokens.)

`--quick` is one seed of GRPO, PPO and SPO; it exits with 1 if one of them does not gain.
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
from itertools import pairwise
from pathlib import Path

ROLLOUTS, BATCH, ANSWERS = 100, 256, 4
# The class in minimind_trl.trainers or trl, its config, and the method's own options.
SETTINGS = {
    "GRPO": ("MiniMindGRPOTrainer", "RolloutConfig", {"num_generations": 8}),
    "CISPO": ("MiniMindGRPOTrainer", "RolloutConfig", {"num_generations": 8, "loss_type": "cispo", "epsilon_high": 5}),
    "RLOO": ("RLOOTrainer", "RLOOConfig", {"num_generations": 8, "beta": 0.0}),
    "PPO": (
        "PPOTrainer",
        "PPOConfig",
        {"num_mini_batches": 1, "num_ppo_epochs": 1, "critic_learning_rate": 1e-3, "kl_coef": 0.01, "vf_coef": 0.5},
    ),
    "SPO (prompt)": ("SPOTrainer", "SPOConfig", {}),
    "SPO (global)": ("SPOTrainer", "SPOConfig", {"tracker": "global"}),
    "SPO (self-play)": ("SPOTrainer", "SPOConfig", {"opponent": "snapshot", "opponent_interval": 25}),
}
QUICK = ("PPO", "SPO (prompt)", "GRPO")  # the slowest first, so that none is left alone at the end


def make_trainer(method: str, seed: int, start: str, steps: int, folder: str):
    """The method's trainer, and one whose evaluation measures its policy."""
    import trl
    from transformers import AutoTokenizer

    from minimind_trl import trainers
    from minimind_trl.data import DatasetMixer
    from minimind_trl.models import load_model, to_twin
    from minimind_trl.rewards import load_rewards

    tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
    data = DatasetMixer.from_yaml("data_configs/tiny/rlaif.yaml").build(tokenizer)
    [reward] = load_rewards(["position_match"])[0]
    common = {
        "seed": seed,
        "per_device_eval_batch_size": 300,
        "max_completion_length": 16,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    training = {
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 7e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 5,
        "adam_beta2": 0.95,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
    }
    measuring = {"eval_temperature": 1.0, "num_generations_eval": ANSWERS}

    def make(home, class_name: str, config_name: str, model, **options):
        config = getattr(home, config_name)(folder, **common, **options)
        rows = {"train_dataset": data["train"], "eval_dataset": data["validation"]}
        return getattr(home, class_name)(model, reward, config, processing_class=tokenizer, **rows)

    class_name, config_name, options = SETTINGS[method]
    if hasattr(trainers, class_name):
        trainer = make(trainers, class_name, config_name, load_model(start), **training, **measuring, **options)
        return trainer, trainer
    trainer = make(trl, class_name, config_name, to_twin(load_model(start)), **training, **options)
    judge = make(trainers, "MiniMindGRPOTrainer", "RolloutConfig", load_model(start), num_generations=8, **measuring)
    return trainer, judge


def measure(method: str, seed: int, start: str, rollouts: int, evaluations: int) -> dict:
    from transformers import TrainerCallback

    from minimind_trl.models import from_twin

    with tempfile.TemporaryDirectory() as folder:
        trainer, judge = make_trainer(method, seed, start, rollouts, folder)
        points, clock = [], {"seconds": 0.0, "since": time.process_time()}

        def evaluate() -> None:
            if judge is not trainer:
                judge.model.load_state_dict(from_twin(trainer.model).state_dict())
            figures = judge.evaluate()
            logs = trainer.state.log_history
            tokens = sum(BATCH * log["completions/mean_length"] for log in logs if "completions/mean_length" in log)
            points.append({"step": trainer.state.global_step, "tokens": tokens, "seconds": clock["seconds"], **figures})

        class HeldOut(TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs):
                clock["since"] = time.process_time()

            def on_log(self, args, state, control, logs=None, **kwargs):  # after the step, whose figures it needs
                if logs and "loss" in logs and not state.global_step % (rollouts // evaluations):
                    clock["seconds"] += time.process_time() - clock["since"]
                    evaluate()
                    clock["since"] = time.process_time()

        evaluate()
        trainer.add_callback(HeldOut())
        trainer.train()
    last = points[-1]
    return {
        "method": method,
        "seed": seed,
        "before": points[0]["eval_reward"],
        "after": last["eval_reward"],
        "half_interval": 1.96 * last["eval_reward_std"] / math.sqrt(last["eval_prompts"]),
        "win_rate": last.get("eval_win_rate"),
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "curve": [
            {"reward": point["eval_reward"], **{name: point[name] for name in ("step", "tokens", "seconds")}}
            for point in points
        ],
    }


def reward_at(run: dict, tokens: float) -> float:
    """Held-out reward after this many generated tokens, interpolated between evaluations."""
    for before, after in pairwise(run["curve"]):
        if before["tokens"] <= tokens <= after["tokens"]:
            share = (tokens - before["tokens"]) / (after["tokens"] - before["tokens"])
            return before["reward"] + share * (after["reward"] - before["reward"])
    return run["after"]


def cost_of(run: dict, reward: float, name: str) -> float:
    """What a run spent, tokens or seconds, until its held-out reward was first this high; NaN if it never was."""
    for before, after in pairwise(run["curve"]):
        if before["reward"] < reward <= after["reward"]:
            share = (reward - before["reward"]) / (after["reward"] - before["reward"])
            return before[name] + share * (after[name] - before[name])
    return 0.0 if run["before"] >= reward else math.nan


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
        command = [sys.executable, __file__, "--measure", *map(str, job), start]
        command += [str(args.rollouts), str(args.evaluations)]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{job} failed:\n{done.stderr}")
        result = json.loads(done.stdout.splitlines()[-1])
        print(f"{job}: {result['before']:.3f} -> {result['after']:.3f}, {result['seconds']:.0f} s", file=sys.stderr)
        return result

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(one, jobs))


def by_method(results: list[dict]) -> dict[str, list[dict]]:
    return {method: [run for run in results if run["method"] == method] for method in dict.fromkeys(SETTINGS)}


def table(results: list[dict]) -> str:
    tokens = min(run["tokens"] for run in results)
    lines = [
        f"| method | before | after (95%) | mean gain | gains | at {tokens:,.0f} tokens | tokens | seconds | wins |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in by_method(results).items():
        if not runs:
            continue
        mean = {
            key: statistics.mean(run[key] for run in runs)
            for key in ("before", "after", "half_interval", "tokens", "seconds")
        }
        gains = [run["after"] - run["before"] for run in runs]
        wins = [run["win_rate"] for run in runs if run["win_rate"] is not None]
        lines.append(
            f"| {method} | {mean['before']:.3f} | {mean['after']:.3f} (+-{mean['half_interval']:.3f}) "
            f"| {statistics.mean(gains):+.3f} | {', '.join(f'{gain:+.3f}' for gain in gains)} "
            f"| {statistics.mean(reward_at(run, tokens) for run in runs):.3f} | {mean['tokens']:,.0f} "
            f"| {mean['seconds']:.0f} | {', '.join(f'{win:.2f}' for win in wins) or '-'} |"
        )
    return "\n".join(lines)


def leaderboard(results: list[dict], reward: float) -> str:
    """Methods by the mean tokens to the reward; those of which a seed never reached it come last."""
    rows = []
    for method, runs in by_method(results).items():
        costs = {name: [cost_of(run, reward, name) for run in runs] for name in ("tokens", "seconds")}
        reached = [cost for cost in costs["tokens"] if not math.isnan(cost)]
        if runs:
            rows.append((len(runs) - len(reached), statistics.mean(reached or [math.inf]), method, costs))
    lines = [f"| method | tokens to {reward:.2f} | every seed | seconds, every seed |", "|---|---|---|---|"]
    for missing, mean, method, costs in sorted(rows, key=lambda row: row[:2]):
        shown = {
            name: ", ".join("never" if math.isnan(cost) else f"{cost:,.0f}" for cost in costs[name]) for name in costs
        }
        lines.append(f"| {method} | {'-' if missing else f'{mean:,.0f}'} | {shown['tokens']} | {shown['seconds']} |")
    return "\n".join(lines)


def draw(results: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2, sharey=True), ("step", "tokens"), strict=True):
        for method, runs in by_method(results).items():
            if not runs:
                continue
            values = list(zip(*([point["reward"] for point in run["curve"]] for run in runs), strict=True))
            spent = zip(*([point[name] for point in run["curve"]] for run in runs), strict=True)
            places = [statistics.mean(points) for points in spent]
            [line] = axis.plot(places, [statistics.mean(row) for row in values], marker=".", label=method)
            low, high = [min(row) for row in values], [max(row) for row in values]
            axis.fill_between(places, low, high, alpha=0.15, color=line.get_color())
        axis.set_xlabel({"step": "optimizer steps", "tokens": "generated tokens"}[name])
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("held-out reward of sampled answers")
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        method, seed, start, *counts = sys.argv[2:]
        print(json.dumps(measure(method, int(seed), start, *map(int, counts))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from_weight", help="a pretrained tiny checkpoint; default: pretrain one (3 minutes)")
    parser.add_argument("--start", help="a fine-tuned checkpoint, from which every method starts as it is")
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS)
    parser.add_argument("--evaluations", type=int, default=10, help="after as many equal parts of the rollouts")
    parser.add_argument("--reward", type=float, default=0.4, help="of the leaderboard")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; they share the cores")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.rollouts % args.evaluations:
        parser.error(f"--rollouts {args.rollouts}: not a multiple of {args.evaluations}, the number of evaluations")
    if args.quick:
        args.methods, args.seeds, args.rollouts = list(QUICK), args.seeds[:1], 60
    with tempfile.TemporaryDirectory() as folder:
        results = run_all(args, args.start or make_start(args.from_weight, Path(folder)))
    print(table(results) + "\n\n" + leaderboard(results, args.reward))
    if args.plot:
        draw(results, args.plot)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    flat = [run["method"] for run in results if run["after"] - run["before"] <= run["half_interval"]]
    if args.quick and flat:
        sys.exit(f"no gain beyond the interval: {', '.join(flat)}")


if __name__ == "__main__":
    main()
