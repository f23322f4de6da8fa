"""Generated tokens per second: our decoding loop and transformers' `generate`.

    OMP_NUM_THREADS=1 python benchmarks/rollouts.py                      # CPU seconds of one core
    python benchmarks/rollouts.py --device cuda                          # checks, then seconds of one GPU

The same random weights as a Qwen3 for transformers' `generate`, and as a MiniMind-3 for ours; prompts of 32 to 64
tokens, padded on the left; temperature 1, all tokens of the vocabulary. The answers' lengths are spread evenly over 8
to 190 tokens: a logits processor ends each answer where its first token says. Counted are the tokens up to and with
the end; prompts and padding are not. The time is the whole call. A rollout has `--rounds` times as many prompts as the
batch, in groups of `--group` equal ones.

- transformers: `Qwen3ForCausalLM.generate` on one batch after the other.
- transformers, at once: the same on the whole rollout.
- transformers, static cache (on a GPU): with `cache_implementation="static"`, which compiles the decoding step.
- ours: `generate` with `minimind_trl.models.decoding.sample` and as many slots as the batch has rows.

On a GPU the checks come first: greedy answers beside those of transformers, sampled tokens beside the probabilities,
changed weights, and memory. A check that fails prints its traceback, and the others go on.
"""

import argparse
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
from minimind_trl.models.decoder import Decoder
from minimind_trl.models.decoding import draw_by_race, sample
from minimind_trl.models.key_value_caches import CapturedStep, StaticCache
from minimind_trl.models.twins import to_twin

SHAPES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 1024},
    "hidden512": {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 6400},
    "hidden768": {"hidden_size": 768, "num_hidden_layers": 16, "vocab_size": 6400},
}
PROMPT, SHORTEST, LONGEST = 64, 8, 190  # tokens
PAD, END, MARK, RESERVED = 0, 2, 3, 200  # no answer has tokens below RESERVED, except END


class EndsAtItsLength(LogitsProcessor):
    """Ends an answer at the length that its first token stands for: SHORTEST to LONGEST, all as likely."""

    supports_continuous_batching = True

    def __call__(self, ids, scores):
        said = (ids.flip(1) == MARK).int().argmax(1)  # tokens after the mark, with which prompts end
        first = ids.gather(1, (ids.shape[1] - said).clamp(max=ids.shape[1] - 1)[:, None])[:, 0]
        due = (said > 0) & (said >= wanted_length(first) - 1)
        scores[:, :RESERVED] = -torch.inf
        scores[:, END] = torch.where(due, 1e4, -torch.inf)
        return scores


def wanted_length(first: torch.Tensor) -> torch.Tensor:
    return SHORTEST + first * 37 % (LONGEST - SHORTEST + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=None)
    parser.add_argument("--batches", nargs="+", type=int, default=None)
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16"])
    parser.add_argument("--rounds", type=int, default=None, help="prompts of a rollout, in batches (4; GPU: 1)")
    parser.add_argument("--group", type=int, default=1, help="equal prompts that follow each other")
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many, the methods in turn")
    parser.add_argument("--methods", nargs="+", default=None, help="only these, such as ours")
    parser.add_argument("--skip_checks", action="store_true", help="on a GPU")
    args = parser.parse_args()
    logging.set_verbosity_error()
    on_gpu = args.device == "cuda"
    args.rounds = args.rounds or (1 if on_gpu else 4)
    if on_gpu:
        print(torch.cuda.get_device_name(), "torch", torch.__version__, "transformers", transformers.__version__)
        if not args.skip_checks:
            run_checks("cuda")
    shapes = args.shapes or (["hidden512", "hidden768"] if on_gpu else ["hidden512"])
    table = Table("shape", "dtype", "batch", "method", "tokens/s", "against transformers")
    for shape in shapes:
        for dtype in args.dtypes:
            models = build(shape, getattr(torch, dtype), args.device)
            for batch in args.batches or ([16, 64, 256] if on_gpu else [16, 64]):
                speeds = compare(models, batch, args)
                if on_gpu and (shape, batch) == (shapes[0], 64) and not args.methods:
                    speeds |= compiled_speed(models, batch, args)
                for method, speed in speeds.items():
                    ratio = speed / (speeds.get("transformers") or float("nan"))
                    table.add_row(shape, dtype, str(batch), method, f"{speed:,.0f}", f"{ratio:.2f}x")
                    print(shape, dtype, batch, method, f"{speed:,.0f}", f"{ratio:.2f}x", flush=True)
    Console(width=100).print(table)


def build(shape: str, dtype: torch.dtype, device: str) -> dict:
    torch.manual_seed(0)
    ours = MiniMindForCausalLM(MiniMindConfig(**SHAPES[shape], eos_token_id=END)).to(device, dtype).eval()
    return {"ours": ours, "stock": to_twin(ours).to(device, dtype).eval()}


def make_prompts(count: int, group: int, device: str, vocabulary: int) -> torch.Tensor:
    """Left-padded prompts of 32 to 64 tokens."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(RESERVED, vocabulary, (count // group, PROMPT), generator=draws)
    padding = torch.randint(0, PROMPT // 2 + 1, (count // group, 1), generator=draws)
    ids[:, -1] = MARK
    return ids.masked_fill(torch.arange(PROMPT) < padding, PAD).repeat_interleave(group, 0).to(device)


def compare(models: dict, batch: int, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of each method, the best of all repeats; 0 for one that fails."""
    ids = make_prompts(batch * args.rounds, args.group, args.device, models["ours"].config.vocab_size)
    stock, ours = (partial(generate, models[name], ids) for name in ("stock", "ours"))
    methods = {
        "transformers": partial(stock, batch),
        "transformers, at once": partial(stock, len(ids)),
        "ours": partial(ours, len(ids), custom_generate=partial(sample, slots=batch)),
    }
    if args.rounds == 1:
        del methods["transformers, at once"]
    if args.methods:
        methods = {name: run for name, run in methods.items() if name in args.methods}
    fastest = dict.fromkeys(methods, 0.0)
    for repeat in range(args.repeats):
        for name, run in methods.items():
            with reported(f"{name}, batch {batch}"):
                torch.manual_seed(repeat)
                seconds, answers = timed(run, args.device)
                lengths = [(answer == END).int().argmax(1) + 1 for answer in answers]
                for answer, length in zip(answers, lengths, strict=True):
                    assert torch.equal(length, wanted_length(answer[:, 0])), f"{name} ended answers at {length}"
                fastest[name] = max(fastest[name], int(torch.cat(lengths).sum()) / seconds)
    return fastest


def compiled_speed(models: dict, batch: int, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of transformers' static cache, which compiles the decoding step; at most 75 seconds."""
    name, ids = "transformers, static cache", make_prompts(batch, 1, args.device, models["ours"].config.vocab_size)
    signal.signal(signal.SIGALRM, partial(_interrupt, name))
    signal.alarm(75)
    with reported(name):
        run = partial(generate, models["stock"], ids, batch, cache_implementation="static")
        compiling, _ = timed(run, args.device)
        seconds, (answers,) = timed(run, args.device)
        print(f"{name}: the first call took {compiling:.0f} s", flush=True)
        signal.alarm(0)
        return {name: int(((answers == END).int().argmax(1) + 1).sum()) / seconds}
    signal.alarm(0)
    return {name: 0.0}


def _interrupt(name: str, *_) -> None:
    raise TimeoutError(name)


def generate(model, ids: torch.Tensor, batch: int, greedy: bool = False, **options) -> list[torch.Tensor]:
    """The answers to so many prompts at a time."""
    config = GenerationConfig(
        max_new_tokens=LONGEST + 2,
        do_sample=not greedy,
        top_k=None if greedy else 0,
        pad_token_id=PAD,
        eos_token_id=END,
        cache_implementation=options.pop("cache_implementation", None),
    )
    return [
        model.generate(
            input_ids=part,
            attention_mask=(part != PAD).long(),
            generation_config=config,
            logits_processor=LogitsProcessorList([EndsAtItsLength()]),
            **options,
        )[:, ids.shape[1] :]
        for part in ids.split(batch)
    ]


def timed(run: Callable, device: str) -> tuple[float, list[torch.Tensor]]:
    """Seconds of a GPU, or of the CPU in all threads of this process."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start, result


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Print the traceback of an error and go on."""
    try:
        yield
    except Exception:
        print(f"FAILED: {name}\n{traceback.format_exc()}", flush=True)


# Checks


def run_checks(device: str) -> None:
    for check in (check_greedy, check_autocast, check_new_weights, check_sampling, check_memory, time_step):
        with reported(check.__name__):
            print(f"{check.__name__}: {check(device)}", flush=True)


def sharp_models(dtype: torch.dtype, device: str) -> dict:
    """Models whose most likely token stands out, so that rounding seldom changes it."""
    models = build("hidden512", dtype, device)
    for model in models.values():
        for parameter in model.parameters():
            parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return models


def check_greedy(device: str) -> str:
    """Greedy answers for batches and prompts of several sizes, with and without refills."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        models = sharp_models(dtype, device)
        for count, group, slots in ((5, 1, None), (64, 8, None), (48, 1, 16)):
            ids = make_prompts(count, group, device, 6400)[:, -40 if count == 5 else -PROMPT :]
            found.append(f"{dtype} {count} in {slots}: {compare_greedy(models, ids, slots)}")
    return "; ".join(found)


def compare_greedy(models: dict, ids: torch.Tensor, slots: int | None) -> str:
    """How many answers are equal; where they part, the gap between the logits of both tokens, which must be small."""
    (said,) = generate(models["ours"], ids, len(ids), greedy=True, custom_generate=partial(sample, slots=slots))
    (expected,) = generate(models["ours"], ids, len(ids), greedy=True)
    width = max(said.shape[1], expected.shape[1])
    said, expected = (pad(part, (0, width - part.shape[1]), value=PAD) for part in (said, expected))
    gaps = []
    for prompt, one, other in zip(ids, said, expected, strict=True):
        if torch.equal(one, other):
            continue
        at = int((one != other).int().argmax())
        text = torch.cat([prompt[prompt != PAD], other[:at]])[None]
        with torch.no_grad():
            logits = models["ours"](text).logits[0, -1].float()
        gaps.append(float((logits[one[at]] - logits[other[at]]).abs() / logits[RESERVED:].std()))
    worst = max(gaps, default=0.0)
    text = f"{len(ids) - len(gaps)} of {len(ids)} equal, largest gap {worst:.4f} of a standard deviation"
    assert worst < 0.25, text
    return text


def check_autocast(device: str) -> str:
    """Greedy answers of float32 weights under autocast, and tokens per second beside float32 without it."""
    models, ids = sharp_models(torch.float32, device), make_prompts(64, 1, device, 6400)
    with torch.autocast(device, torch.bfloat16):
        found = compare_greedy(models, ids, None)
    run = partial(generate, models["ours"], ids, len(ids), custom_generate=sample)
    speeds = []
    for enabled in (True, False):
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            run()
            torch.manual_seed(0)
            seconds, (answers,) = timed(run, device)
        speeds.append(int(((answers == END).int().argmax(1) + 1).sum()) / seconds)
    return f"{found}; {speeds[0]:,.0f} tokens/s, in float32 {speeds[1]:,.0f}"


def check_new_weights(device: str) -> str:
    """A rollout after the weights have changed says something else, the same as transformers."""
    models, ids = sharp_models(torch.float32, device), make_prompts(16, 1, device, 6400)
    run = partial(generate, models["ours"], ids, len(ids), greedy=True)
    first = run(custom_generate=sample)[0]
    with torch.no_grad():
        for parameter in models["ours"].parameters():
            if parameter.dim() > 1:
                parameter.add_(0.03 * torch.randn_like(parameter))
    second, expected = run(custom_generate=sample)[0], run()[0]
    assert not torch.equal(first[:, :8], second[:, :8]), "the answers are those of the old weights"
    return compare_greedy(models, ids, None) + f"; {(second[:, 0] == expected[:, 0]).float().mean():.0%} first tokens"


def check_sampling(device: str) -> str:
    """The first tokens of many samples of one prompt, beside the probabilities: chi-squared over the likeliest."""
    models = sharp_models(torch.float32, device)
    ids, count = make_prompts(1, 1, device, 6400), 16384
    config = GenerationConfig(max_new_tokens=2, do_sample=True, top_k=8, temperature=2.0, pad_token_id=PAD)
    torch.manual_seed(0)
    drawn = models["ours"].generate(
        input_ids=ids.expand(count, -1),
        attention_mask=(ids != PAD).long().expand(count, -1),
        generation_config=config,
        custom_generate=sample,
    )[:, PROMPT]
    with torch.no_grad():
        best = (models["ours"](ids, (ids != PAD).long()).logits[0, -1] / 2).topk(8)
    wanted = best.values.softmax(0) * count
    seen = (drawn[:, None] == best.indices).sum(0)
    chi = float(((seen - wanted) ** 2 / wanted).sum())
    assert int(seen.sum()) == count, "tokens outside top_k were drawn"
    assert chi < 26, f"chi-squared {chi:.1f} with 7 degrees of freedom"  # 0.05% chance
    return f"chi-squared {chi:.1f} with 7 degrees of freedom, {seen.tolist()} beside {wanted.long().tolist()}"


def check_memory(device: str) -> str:
    """Nothing stays allocated after a rollout; rollouts of other shapes follow each other."""
    models = build("hidden512", torch.bfloat16, device)
    allocated = []
    for count in (16, 64, 300, 16):
        ids = make_prompts(count, 1, device, 6400)
        generate(models["ours"], ids, len(ids), custom_generate=sample)
        del ids
        allocated.append(torch.cuda.memory_allocated() >> 20 if device == "cuda" else 0)
    assert max(allocated[1:]) <= allocated[0] + 1, f"MiB allocated after each rollout: {allocated}"
    return f"MiB allocated after each rollout: {allocated}"


@torch.no_grad()
def time_step(device: str) -> str:
    """Milliseconds of a step, as a graph and kernel by kernel, and of drawing its tokens."""
    found = []
    for shape, slots in (("hidden512", 64), ("hidden512", 256), ("hidden768", 64)):
        model = build(shape, torch.bfloat16, device)["ours"]
        decoder = Decoder(model, 1000)
        start, cache = time.perf_counter(), StaticCache(decoder, slots)
        cache.admit(list(range(slots)), decoder.read([list(range(300, 300 + PROMPT))]), [0] * slots)
        tokens = torch.full((slots,), 300, device=device)
        step = CapturedStep(decoder, cache) if device == "cuda" else partial(decoder.step, cache=cache)
        step(tokens)
        logits = decoder.step(tokens, cache).float()
        timed(lambda: None, device)  # waits for the device
        parts = {"until the first step": time.perf_counter() - start}
        runs = {
            "graph": partial(step, tokens),
            "eager": partial(decoder.step, tokens, cache),
            "draw": partial(draw_by_race, logits),
        }
        for name, run in runs.items():
            parts[name] = min(timed(lambda run=run: [run() for _ in range(20)], device)[0] for _ in range(2)) / 20
        found.append(f"{shape} {slots}: " + ", ".join(f"{name} {1000 * part:.3f}" for name, part in parts.items()))
    return "; ".join(found)


if __name__ == "__main__":
    main()
