"""Generated tokens per second: our decoding loop, transformers' `generate`, and a plain cached sampling loop.

    python benchmarks/rollouts.py [--shapes tiny hidden512] [--batches 16 64] [--dtypes bfloat16 float32] [--repeats 2]

The same random weights as a Qwen3 for transformers' `generate` and the plain loop, and as a MiniMind-3 for ours;
prompts of 32 to 64 tokens, padded on the left; temperature 1, all tokens of the vocabulary. The answers' lengths are
spread evenly over 8 to 190 tokens: a logits processor ends each row at its own, in all three. Counted are the tokens
up to and with the end, prompts and padding not; the time is the whole call. `--equal` gives every answer 190 tokens,
so that rows that have ended cost nothing in any of them.

- transformers: `Qwen3ForCausalLM.generate`.
- plain: the loop that one writes by hand: forward with transformers' DynamicCache, softmax, `torch.multinomial`, until
  all rows have ended.
- ours: `generate` with `minimind_trl.models.decoding.sample`, which is what the online trainers do on a CPU.
"""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
from minimind_trl.models.decoding import sample
from minimind_trl.models.twins import to_twin

SHAPES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 1024},
    "hidden512": {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 6400},
}
PROMPT, SHORTEST, LONGEST, END = 64, 8, 190, 2


class EndsAtItsLength(LogitsProcessor):
    """Ends a row when it has as many new tokens as the last token of its prompt says."""

    def __call__(self, ids, scores):
        due = ids.shape[1] - PROMPT >= ids[:, PROMPT - 1] - 1
        scores[:, END] = -torch.inf
        scores[due] = -torch.inf
        scores[due, END] = 0
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many, the methods in turn")
    parser.add_argument("--equal", action="store_true", help="answers of equal lengths")
    args = parser.parse_args()
    table = Table("shape", "dtype", "batch", "method", "tokens/s", "against transformers")
    for shape in args.shapes:
        for dtype in args.dtypes:
            models = build(shape, getattr(torch, dtype))
            for batch in args.batches:
                speeds = compare(models, batch, args.repeats, args.equal)
                for method, speed in speeds.items():
                    ratio = speed / speeds["transformers"]
                    table.add_row(shape, dtype, str(batch), method, f"{speed:,.0f}", f"{ratio:.2f}x")
    Console(width=100).print(table)


def build(shape: str, dtype: torch.dtype) -> dict:
    torch.manual_seed(0)
    ours = MiniMindForCausalLM(MiniMindConfig(**SHAPES[shape], eos_token_id=END)).to(dtype).eval()
    return {"ours": ours, "stock": to_twin(ours).to(dtype).eval()}


def compare(models: dict, batch: int, repeats: int, equal: bool) -> dict[str, float]:
    """Tokens per second of each method, the best of all repeats."""
    ids = torch.randint(3, SHAPES["tiny"]["vocab_size"], (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    lengths = torch.full((batch,), LONGEST) if equal else torch.linspace(SHORTEST, LONGEST, batch).long()
    ids[:, -1] = lengths
    mask = (torch.arange(PROMPT) >= torch.linspace(0, PROMPT // 2, batch).long()[:, None]).long()
    config = GenerationConfig(max_new_tokens=LONGEST + 2, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=END)
    inputs = {"input_ids": ids, "attention_mask": mask}
    options = {"generation_config": config, "logits_processor": LogitsProcessorList([EndsAtItsLength()])}
    methods = {
        "transformers": lambda: models["stock"].generate(**inputs, **options),
        "plain": lambda: plain(models["stock"], **inputs),
        "ours": lambda: models["ours"].generate(**inputs, **options, custom_generate=sample),
    }
    fastest = dict.fromkeys(methods, float("inf"))
    for _ in range(repeats):
        for name, run in methods.items():
            start = time.perf_counter()
            answers = run()[:, PROMPT:]
            fastest[name] = min(fastest[name], time.perf_counter() - start)
            said = (answers == END).int().argmax(1) + 1
            assert torch.equal(said, lengths), f"{name} ended answers at {said.tolist()}"
    return {name: int(lengths.sum()) / seconds for name, seconds in fastest.items()}


@torch.no_grad()
def plain(model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    cache, ends = DynamicCache(config=model.config), EndsAtItsLength()
    ids, tokens, mask = input_ids, input_ids, attention_mask
    ended = torch.zeros(len(ids), dtype=torch.bool)
    while not ended.all():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        logits = model(tokens, mask, positions, cache, logits_to_keep=1).logits[:, -1]
        tokens = torch.multinomial(ends(ids, logits.float()).softmax(-1), 1)
        ids, mask = torch.cat([ids, tokens], 1), torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        ended = ended | (tokens[:, 0] == END)
    return ids


if __name__ == "__main__":
    main()
