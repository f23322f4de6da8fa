"""Supervised fine-tuning on one GPU, with and without `--torch_compile`: tokens per second, MFU, and equal losses.

    python benchmarks/sft_gpu.py [--shapes 512x8 768x16] [--batch_size 64] [--steps 60] [--output FILE.json]

`recipes/sft.py`'s trainer on packed rows of random tokens, in documents as long as Alpaca's (a mean of 135 tokens, the
longest 512), three of four tokens learned, in bf16. The first steps of a run are not counted; "compiling" is how much
longer they took. `flex` is the same with transformers' flex attention. All methods see the same rows in the same order
from the same weights. The losses of one batch are compared in float32, and those of the counted steps in bf16.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import SFTConfig

from minimind_trl.hardware import peak_flops, train_flops_per_token
from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.trainers import MiniMindSFTTrainer
from minimind_trl.trainers.throughput import count_tokens

VOCABULARY, WARMUP = 6400, 6
METHODS = ("eager", "compiled", "flex")


def random_rows(count: int, longest: int) -> Dataset:
    """Rows of random tokens; lengths are spread as Alpaca's are."""
    random = torch.Generator().manual_seed(0)
    lengths = (100 * torch.randn(count, generator=random).mul(0.75).exp()).int().clamp(16, longest).tolist()
    rows = []
    for length in lengths:
        ids = torch.randint(5, VOCABULARY, (length,), generator=random).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 4) + ids[length // 4 :]})
    return Dataset.from_list(rows)


class Clock(TrainerCallback):
    """Wall time of the steps after the first ones, and the tokens in them."""

    def __init__(self):
        self.tokens = self.squares = self.steps = 0
        self.began = time.perf_counter()
        self.started = self.ended = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if self.steps == WARMUP or self.steps == args.max_steps:
            if args.device.type == "cuda":
                torch.cuda.synchronize()
            self.ended = time.perf_counter()
        if self.steps == WARMUP:
            self.started, self.tokens, self.squares = self.ended, 0, 0


def make_trainer(method: str, shape: str, rows: Dataset, args: argparse.Namespace, folder: str, bf16: bool):
    width, depth = map(int, shape.split("x"))
    set_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "vocab_size": VOCABULARY}
    model = MiniMindForCausalLM(MiniMindConfig.from_preset("minimind3", **sizes))
    if method == "flex":
        model.set_attn_implementation("flex_attention")
    clock = Clock()

    class Counted(MiniMindSFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            tokens, squares = count_tokens(inputs)
            clock.tokens, clock.squares = clock.tokens + tokens, clock.squares + squares
            return super().training_step(model, inputs, *args, **kwargs)

    config = SFTConfig(
        folder,
        per_device_train_batch_size=args.batch_size,
        max_length=args.max_length,
        packing=True,
        bf16=bf16,
        tf32=False if torch.cuda.is_available() else None,
        use_cpu=not torch.cuda.is_available(),
        torch_compile=method != "eager",
        gradient_checkpointing=False,
        learning_rate=5e-4,
        max_steps=args.steps,
        logging_steps=WARMUP,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=True,
    )
    tokenizer = tiny_tokenizer()
    return Counted(model=model, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[clock]), clock


def measure(method: str, shape: str, rows: Dataset, args: argparse.Namespace) -> dict:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = make_trainer(method, shape, rows, args, folder, bf16=True)
        clock.began = time.perf_counter()
        trainer.train()
    seconds, steps = clock.ended - clock.started, args.steps - WARMUP
    tokens, squares = int(clock.tokens), int(clock.squares)
    peak = peak_flops(trainer.args.device, torch.bfloat16)
    flops = tokens * train_flops_per_token(trainer.model.config, squares / tokens)
    return {
        "shape": shape,
        "method": method,
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens / steps,
        "mfu": flops / seconds / peak,
        "compiling": clock.started - clock.began - WARMUP * seconds / steps,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
    }


def losses_in_float32(shape: str, rows: Dataset, args: argparse.Namespace) -> dict[str, float]:
    """The loss of the first batch, and the norm of its gradient."""
    found = {}
    for method in METHODS[:2]:
        with tempfile.TemporaryDirectory() as folder:
            trainer, _ = make_trainer(method, shape, rows, args, folder, bf16=False)
            batch = trainer.prepare_inputs(next(iter(trainer.get_train_dataloader())))
            loss = trainer.compute_loss(trainer.model.train(), batch)
            loss.backward()
            found[method] = loss.item()
            found[f"{method}, gradient"] = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0).item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["512x8", "768x16"])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=100, help="begin nothing more after these")
    parser.add_argument("--output")
    args = parser.parse_args()
    began, results = time.perf_counter(), []
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{card}, torch {torch.__version__}", flush=True)
    rows = random_rows(24 * args.batch_size * args.max_length // 135, args.max_length)
    for shape in args.shapes:
        for method in args.methods:
            if time.perf_counter() - began > args.seconds:
                print(f"no time left for {shape} {method}", flush=True)
                continue
            try:
                results.append(measure(method, shape, rows, args))
                print(json.dumps(results[-1]), flush=True)
            except Exception as error:  # the next method may still work
                print(f"{shape} {method} failed: {type(error).__name__}: {str(error)[:500]}", flush=True)
    if time.perf_counter() - began < args.seconds:
        print("float32:", json.dumps(losses_in_float32(args.shapes[0], rows, args)), flush=True)
    print("\n| hidden size x layers | method | tokens/s | MFU | compiling, s | peak memory, GiB |")
    print("|---|---|---|---|---|---|")
    for run in results:
        memory = f"{run['memory_gib']:.1f}" if run["memory_gib"] else "-"
        print(
            f"| {run['shape']} | {run['method']} | {run['tokens_per_second']:,.0f} | {run['mfu']:.1%} "
            f"| {run['compiling']:.0f} | {memory} |"
        )
    print(f"{time.perf_counter() - began:.0f} s in all")
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
