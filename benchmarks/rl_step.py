"""Seconds per optimizer step of GRPO, PPO and SPO beside TRL's GRPOTrainer, on the tiny model and the same prompts.

    python benchmarks/rl_step.py [--from_weight CHECKPOINT] [--steps 12] [--repeats 2] [--bf16] [--torch_compile]

TRL's GRPOTrainer trains transformers' Qwen3 twin of the checkpoint, ours the checkpoint itself; weights and prompts are
the same, as are all options that the methods share: 256 answers of at most 16 tokens a step, one step a rollout, no
reference model. GRPO answers 32 prompts eight times, PPO and SPO 256 prompts once. TRL wants at least two answers to a
prompt, so `pairs`, 128 prompts twice, is as near as it comes to theirs. Every trainer runs in a process of its own, one
after the other, `--repeats` times; the first steps are not counted. CPU seconds are those of the whole process.

With `--profile METHOD` it prints where one method's CPU time goes instead.
"""

import argparse
import cProfile
import itertools
import json
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, WARMUP = 256, 3
METHODS = ("TRL GRPO", "TRL GRPO, pairs", "GRPO", "GRPO, pairs", "SPO", "PPO")


def make_trainer(method: str, start: str, folder: str, steps: int, bf16: bool, compiled: bool):
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from minimind_trl import trainers
    from minimind_trl.data import DatasetMixer
    from minimind_trl.models import load_model, to_twin
    from minimind_trl.models.cpu_kernels import use_cpu_kernels
    from minimind_trl.rewards import load_rewards

    tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
    prompts = DatasetMixer.from_yaml("data_configs/tiny/rlaif.yaml").build(tokenizer)["train"]
    model, [reward] = load_model(start), load_rewards(["position_match"])[0]
    trainer_class, config_class, options = {
        "TRL GRPO": (GRPOTrainer, GRPOConfig, {"num_generations": 8}),
        "TRL GRPO, pairs": (GRPOTrainer, GRPOConfig, {"num_generations": 2}),
        "GRPO": (trainers.MiniMindGRPOTrainer, trainers.RolloutConfig, {"num_generations": 8}),
        "GRPO, pairs": (trainers.MiniMindGRPOTrainer, trainers.RolloutConfig, {"num_generations": 2}),
        "PPO": (trainers.PPOTrainer, trainers.PPOConfig, {"num_mini_batches": 1, "num_ppo_epochs": 1, "kl_coef": 0.0}),
        "SPO": (trainers.SPOTrainer, trainers.SPOConfig, {"beta": 0.0}),
    }[method]
    config = config_class(
        folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        max_completion_length=16,
        learning_rate=1e-5,  # so that answers stay as long as they are
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=bf16,
        torch_compile=compiled and not method.startswith("TRL"),
        gradient_checkpointing=False,
        disable_tqdm=True,
        **options,
    )
    policy = to_twin(model) if method.startswith("TRL") else use_cpu_kernels(model)
    return trainer_class(policy, reward, config, train_dataset=prompts, processing_class=tokenizer)


def measure(method: str, start: str, steps: int, bf16: bool, compiled: bool, profile: bool) -> dict:
    """Medians over the counted steps."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends = []

        def on_step_end(self, args, state, control, **kwargs):
            if profile and len(self.ends) == WARMUP:
                profiler.enable()
            self.ends.append((time.perf_counter(), time.process_time()))

    profiler, clock = cProfile.Profile(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(method, start, folder, steps + WARMUP + 1, bf16, compiled)
        trainer.add_callback(clock)
        trainer.train()
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(90)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    ends = clock.ends[WARMUP:]
    wall, cpu = ([b[i] - a[i] for a, b in itertools.pairwise(ends)] for i in (0, 1))
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "completions/mean_length" in log]
    return {
        "method": method,
        "seconds": statistics.median(wall),
        "cpu_seconds": statistics.median(cpu),
        "mean_length": statistics.mean(lengths[WARMUP:]),
    }


def table(results: list[dict]) -> str:
    """Best of the repeats; ratios of seconds to TRL's."""
    best = {
        method: min((run for run in results if run["method"] == method), key=lambda run: run["seconds"])
        for method in METHODS
    }
    lines = [
        "| trainer | seconds a step, every run | best | of TRL's | CPU seconds | of TRL's | tokens an answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, run in best.items():
        runs = ", ".join(f"{one['seconds']:.2f}" for one in results if one["method"] == method)
        ratios = [run[name] / best["TRL GRPO"][name] for name in ("seconds", "cpu_seconds")]
        lines.append(
            f"| {method} | {runs} | {run['seconds']:.2f} | {ratios[0]:.2f} | {run['cpu_seconds']:.2f} "
            f"| {ratios[1]:.2f} | {run['mean_length']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        method, start, steps, *flags = sys.argv[2:]
        bf16, compiled = (flag == "True" for flag in flags)
        print(json.dumps(measure(method, start, int(steps), bf16, compiled, profile=False)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from_weight", help="a fine-tuned tiny checkpoint; default: train one (3 minutes)")
    parser.add_argument("--steps", type=int, default=12, help="counted steps of a run")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="train in bf16, as recipes do on a fast machine")
    parser.add_argument("--torch_compile", action="store_true", help="compile the layers of ours")
    parser.add_argument("--profile", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = args.from_weight or make_start(None, Path(folder))
        if args.profile:
            measure(args.profile, start, args.steps, args.bf16, args.torch_compile, profile=True)
            return
        results = []
        for method in METHODS * args.repeats:
            command = [sys.executable, __file__, "--measure", method, start, str(args.steps)]
            command += [str(args.bf16), str(args.torch_compile)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{method} failed:\n{done.stderr}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{method}: {results[-1]['seconds']:.2f} s a step", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    from rl import make_start  # the script beside this one

    main()
