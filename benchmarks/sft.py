"""Useful tokens per second of supervised fine-tuning, beside two other ways to train on the same rows.

    OMP_NUM_THREADS=1 python benchmarks/sft.py --rows ALPACA.jsonl --tokenizer DIR [--seconds 60] [--repeats 3]

The same rows, in the same order, with the loss on the assistant's turns, for a model of `--hidden_size` x
`--num_hidden_layers` (default: that of minimind2-small), by

- `ours`: `recipes/sft.py`'s trainer as it comes: packed rows, bf16 where the machine has it,
- `ours, compiled`: the same with `--torch_compile`,
- `ours, padded`: the same with `--packing false`,
- `TRL`: TRL's SFTTrainer as it comes, padded, on transformers' Qwen3 of the same shape, in the same precision,
- `TRL, packed`: the same with packing,
- `plain loop`: rows padded to the full length in fp32, forward, loss, backward, AdamW: as upstream's own script does.

Each takes steps for some seconds, after one that is not timed, in a process of its own, in turns; the table shows
medians. On a CPU seconds are those of the process, so that other work on the machine counts less, and with one thread
they are those of one core. Useful tokens are those that are not padding. MFU is model FLOPs over the peak of a bf16
matrix product, the best that any of the processes measured. Also compares the loss of one batch in float32: packed and
padded rows, attention in tiles and by `sdpa`, compiled and plain layers. Prints a markdown table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHODS = ("ours", "ours, compiled", "ours, padded", "TRL", "TRL, packed", "plain loop")
LEARNING_RATE = 5e-4


def now() -> float:
    """Seconds of this process on a CPU, of the clock on a GPU."""
    import torch

    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def rows_of(path: Path, count: int) -> list[dict]:
    """Conversations of Alpaca's rows, or rows that have `messages` already."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        if "messages" not in row:
            prompt = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
            row["messages"] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]
        rows.append({"messages": row["messages"]})
    return rows


def measure(method: str, args: argparse.Namespace) -> dict:
    import torch
    from transformers import AutoTokenizer, set_seed

    from minimind_trl.hardware import has_fast_bf16
    from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
    from minimind_trl.models.cpu_kernels import use_cpu_kernels
    from minimind_trl.models.twins import to_twin
    from minimind_trl.tokenization import with_training_template

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, trust_remote_code=False)
    set_seed(0)
    sizes = {"hidden_size": args.hidden_size, "num_hidden_layers": args.num_hidden_layers}
    config = MiniMindConfig.from_preset("minimind3", **sizes, vocab_size=len(tokenizer))
    model = MiniMindForCausalLM(config)
    rows = rows_of(Path(args.rows), args.count)
    on_gpu = torch.cuda.is_available()
    if method == "plain loop":
        return plain_loop(model.cuda() if on_gpu else model, with_training_template(tokenizer), rows, args)
    if method.startswith("TRL"):
        model = to_twin(model)
    elif not on_gpu:
        use_cpu_kernels(model)
    options = {
        "per_device_train_batch_size": args.batch_size,
        "max_length": args.max_length,
        "learning_rate": LEARNING_RATE,
        "assistant_only_loss": True,
        "packing": method in ("ours", "ours, compiled", "TRL, packed"),
        "torch_compile": method == "ours, compiled",
        "bf16": has_fast_bf16(use_cpu=not on_gpu),
        "use_cpu": not on_gpu,
        "gradient_checkpointing": False,
        "max_steps": 1_000_000,
        "logging_steps": 1_000_000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return train(method, model, with_training_template(tokenizer), rows, options, args.seconds)


def train(method: str, model, tokenizer, rows: list[dict], options: dict, seconds: float) -> dict:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from minimind_trl.trainers import MiniMindSFTTrainer
    from minimind_trl.trainers.throughput import count_tokens

    class Clock(TrainerCallback):
        """Counts tokens from the end of the first step on, and stops after the time."""

        tokens = steps = squares = 0
        started = ended = None

        def on_step_end(self, args, state, control, **kwargs):
            if self.started is None:
                self.started, self.tokens, self.squares = now(), 0, 0
                return
            self.steps, self.ended = self.steps + 1, now()
            control.should_training_stop = self.ended - self.started > seconds

    base = MiniMindSFTTrainer if method.startswith("ours") else SFTTrainer

    class Counted(base):
        def training_step(self, model, inputs, *args, **kwargs):
            tokens, squares = count_tokens(inputs).tolist()
            clock.tokens, clock.squares = clock.tokens + tokens, clock.squares + squares
            return super().training_step(model, inputs, *args, **kwargs)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Counted(
            model=model,
            args=SFTConfig(output_dir=folder, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return figures(model.config, clock.tokens, clock.squares, clock.ended - clock.started, clock.steps)


def plain_loop(model, tokenizer, rows: list[dict], args: argparse.Namespace) -> dict:
    import torch
    import torch.nn.functional as F

    from minimind_trl.evaluation.held_out import tokenize_rows

    pad = tokenizer.pad_token_id
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    prepared = tokenize_rows(rows, tokenizer, args.max_length, assistant_only=True)
    started, tokens, squares, steps = None, 0, 0, 0
    for first in range(0, len(prepared), args.batch_size):
        batch = prepared[first : first + args.batch_size]
        ids = torch.tensor([ids + [pad] * (args.max_length - len(ids)) for ids, _ in batch], device=device)
        mask = torch.tensor([wanted + [False] * (args.max_length - len(wanted)) for _, wanted in batch], device=device)
        logits = model(input_ids=ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        wanted = mask[:, 1:].flatten().float()
        ((loss * wanted).sum() / wanted.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ended = now()
        if started is None:
            started = ended
            continue
        steps += 1
        tokens += sum(len(ids) for ids, _ in batch)
        squares += sum(len(ids) ** 2 for ids, _ in batch)
        if ended - started > args.seconds:
            break
    return figures(model.config, tokens, squares, ended - started, steps)


def figures(config, tokens: int, squares: int, seconds: float, steps: int) -> dict:
    import torch

    from minimind_trl.hardware import peak_flops, train_flops_per_token

    peak = peak_flops("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
    flops = tokens * train_flops_per_token(config, squares / tokens)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "steps": steps,
        "tokens_per_second": tokens / seconds,
        "flops_per_second": flops / seconds,
        "peak": peak,
        "threads": torch.get_num_threads(),
    }


def losses(args: argparse.Namespace) -> dict[str, float]:
    """The loss of one batch of rows in float32: packed with everything that makes it fast, and without one of these."""
    from datasets import Dataset
    from transformers import AutoTokenizer, set_seed
    from trl import SFTConfig

    from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
    from minimind_trl.models.cpu_kernels import use_cpu_kernels
    from minimind_trl.tokenization import with_training_template
    from minimind_trl.trainers import MiniMindSFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, trust_remote_code=False)
    sizes = {"hidden_size": args.hidden_size, "num_hidden_layers": args.num_hidden_layers}
    found = {}
    for name, packing, in_tiles, compiled in (
        ("compiled, packed, in tiles", True, True, True),
        ("packed, in tiles", True, True, False),
        ("packed, sdpa", True, False, False),
        ("padded, in tiles", False, True, False),
    ):
        set_seed(0)
        model = MiniMindForCausalLM(MiniMindConfig.from_preset("minimind3", **sizes, vocab_size=len(tokenizer)))
        options = {"packing": packing, "max_length": args.max_length, "per_device_train_batch_size": 64}
        options |= {"assistant_only_loss": True, "use_cpu": True, "bf16": False, "report_to": "none"}
        with tempfile.TemporaryDirectory() as folder:
            trainer = MiniMindSFTTrainer(
                model=use_cpu_kernels(model) if in_tiles else model,
                args=SFTConfig(folder, **options, torch_compile=compiled),
                train_dataset=Dataset.from_list(rows_of(Path(args.rows), 64)),
                processing_class=with_training_template(tokenizer),
            )
            [batch] = trainer.get_train_dataloader()
            found[name] = trainer.compute_loss(model.train(), batch).item()
    return found


def report(results: dict[str, list[dict]], found: dict[str, float]) -> str:
    keys = ("tokens_per_second", "flops_per_second")
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in keys} for name, runs in results.items()
    }
    peak = max(run["peak"] for runs in results.values() for run in runs)  # what disturbs the machine only lowers it
    ours = medians["ours"]["tokens_per_second"]
    lines = ["| method | useful tokens/s | lowest to highest | ours is | MFU |", "|---|---|---|---|---|"]
    for name, runs in results.items():
        rates = [run["tokens_per_second"] for run in runs]
        rate, mfu = medians[name]["tokens_per_second"], medians[name]["flops_per_second"] / peak
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        lines.append(f"| {name} | {rate:,.0f} | {spread} | {ours / rate:.2f}x as fast | {mfu:.0%} |")
    some = next(iter(results.values()))[0]
    lines.append(f"\nPeak: {peak / 1e9:,.0f} GFLOP/s in bf16, {some['threads']} threads.")
    lines.append("Loss of 64 rows in fp32: " + "; ".join(f"{name} {loss:.7f}" for name, loss in found.items()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", required=True, help="JSONL of Alpaca's or chat rows")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--count", type=int, default=4000, help="rows read")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_hidden_layers", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--output")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args)))
        return
    results: dict[str, list[dict]] = {name: [] for name in args.methods}
    for _ in range(args.repeats):
        for name in args.methods:
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {results[name][-1]['tokens_per_second']:,.0f} useful tokens/s", file=sys.stderr)
    print(report(results, losses(args)))
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
