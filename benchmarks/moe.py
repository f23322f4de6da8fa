"""What does a mixture of experts cost beside a dense model with as many active parameters?

    python benchmarks/moe.py [--presets minimind3-moe minimind2-moe] [--batch 8] [--length 340] [--repeats 2]

Tokens per second of forward and backward pass on a CPU under bf16 autocast, without the optimizer, with random weights
and ids: the dense model of the same generation, the mixture with transformers' grouped product (its default), and
with experts one by one, as the recipes run them on a CPU. The best of the repeats; seconds are CPU seconds by the
number of threads, so that other work on the machine counts little.
"""

import argparse
import time

import torch

from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM

DENSE = {"minimind3-moe": "minimind3", "minimind2-moe": "minimind2"}


def speed(preset: str, implementation: str | None, batch: int, length: int, repeats: int) -> float:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(MiniMindConfig.from_preset(preset)).train()
    if implementation:
        model.set_experts_implementation(implementation)
    ids = torch.randint(3, model.config.vocab_size, (batch, length))
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        model.zero_grad()
        times.append((time.process_time() - start) / torch.get_num_threads())
    return batch * length / min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=DENSE, default=list(DENSE))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=340)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    print("| model | experts | tokens/s | the dense model is |\n|---|---|---|---|")
    for preset in args.presets:
        sizes = args.batch, args.length, args.repeats
        dense = speed(DENSE[preset], None, *sizes)
        print(f"| {DENSE[preset]} | - | {dense:,.0f} | |", flush=True)
        for name, implementation in (("grouped product", "grouped_mm"), ("one by one", "eager")):
            own = speed(preset, implementation, *sizes)
            print(f"| {preset} | {name} | {own:,.0f} | {dense / own:.2f}x as fast |", flush=True)


if __name__ == "__main__":
    main()
