"""Does the doctor name what is wrong? Planted faults and healthy runs of a small model, read by `minimind-trl doctor`.

    python benchmarks/doctor.py [--jobs 2] [--seeds 1 2 3] [--cases NAME ...] [--output FILE.json] [--folder DIR]
    python benchmarks/doctor.py --read FILE.json     # the same runs, by the rules as they are now
    python benchmarks/doctor.py --quick

A run is one of the package's recipes on a toy world that is made here: the nano preset (220 thousand parameters) says
the opposites of one to four words. All runs start from one pretrained checkpoint, or from that fine-tuned briefly, and
take a few tens of steps. A fault is one wrong setting, or wrong rows. It counts as named if the first line of
`minimind-trl doctor` has its name; in a healthy run every fault or warning is a false alarm.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

PAIRS = "hot cold,big small,fast slow,wet dry,old new,hard soft,good bad,high low,long short,open shut"
OPPOSITE = {a: b for pair in PAIRS.split(",") for a, b in (pair.split(), reversed(pair.split()))}
WORDS = sorted(OPPOSITE)
MIXTURE = """metadata: {{phase: {phase}, max_seq_length: 64, version: "1.0"}}
datasets:
  - name: toy
    source: .
    format: jsonl
    data_files: {{train: {name}_train.jsonl, validation: {name}_validation.jsonl}}
    keep_columns: {columns}
    mix_ratio: 1.0
"""
TEMPLATE = """{% for message in messages %}### {{ message.role }}:
{% generation %}{{ message.content }}{{ eos_token }}
{% endgeneration %}{% endfor %}{% if add_generation_prompt %}### assistant:
{% endif %}"""
KEPT = ("trainer", "start", "options", "checks", "usual_learning_rate", "reward_range", "rows")  # of recipe.json
COMMON = {
    "save_strategy": "no",
    "bf16": "false",
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "logging_steps": 4,
    "per_device_eval_batch_size": 100,
    "eval_batches": 1,  # of 100 rows; benchmarks/tripwire.py takes all
}
PRETRAIN = {"preset": "nano", "max_steps": 500, "per_device_train_batch_size": 16, "learning_rate": 5e-3}
FINE_TUNE = {"max_steps": 60, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "eval_interval": 30}
PAIRWISE = {"max_steps": 40, "per_device_train_batch_size": 16, "eval_interval": 20}
ONLINE = {
    "max_steps": 32,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 12,
    "learning_rate": 3e-4,
    "reward_funcs": "position_match",
    "eval_interval": 16,
    "eval_temperature": 1.0,
    "logging_steps": 2,
}
RECIPES: dict[str, dict[str, Any]] = {
    "sft": {"from_weight": "pretrain"} | FINE_TUNE,
    "dpo": {"from_weight": "sft", "learning_rate": 1e-4} | PAIRWISE,
    "reward": {"from_weight": "sft", "learning_rate": 1e-3} | PAIRWISE,
    "grpo": {"from_weight": "sft", "num_generations": 8} | ONLINE,
    "ppo": {"from_weight": "sft", "critic_learning_rate": 1e-2, "num_ppo_epochs": 1, "num_mini_batches": 1} | ONLINE,
    "spo": {"from_weight": "sft"} | ONLINE,
}


@dataclass(frozen=True)
class Case:
    """A run to examine.

    Attributes:
        recipe: by which it trains.
        fault: the name that the doctor must give; None for a healthy run.
        options: that differ from the recipe's here.
        data: the mixture, where it is not the recipe's own.
    """

    recipe: str
    fault: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    data: str | None = None


CASES: dict[str, Case] = {
    "sft, learning rate x100": Case("sft", "learning rate too high", {"learning_rate": 0.2}),
    "sft, learning rate /100": Case("sft", "learning rate too low", {"learning_rate": 2e-5}),
    "sft, rows cut before their end": Case("sft", "end of turn never trained", {"max_length": 36}, "sft_long"),
    "sft, 24 rows again and again": Case("sft", "memorising", {"max_steps": 120}, "sft_few"),
    "grpo, another chat template": Case("grpo", "template mismatch", {"tokenizer": "other_template"}),
    "dpo, another chat template": Case("dpo", "template mismatch", {"tokenizer": "other_template"}),
    "dpo, learning rate x100": Case("dpo", "learning rate too high", {"learning_rate": 1e-2}),
    "dpo, answers hardly differ": Case("dpo", "chosen and rejected hardly differ", {}, "dpo_alike"),
    "dpo, a loss that lowers both": Case(
        "dpo", "both log-probabilities fall", {"loss_type": "apo_down", "learning_rate": 5e-4}
    ),
    "reward, learning rate /100": Case("reward", "learning rate too low", {"learning_rate": 1e-5}),
    "reward, random labels": Case("reward", "labels without signal", {}, "dpo_random"),
    "grpo, learning rate x100": Case("grpo", "learning rate too high", {"learning_rate": 3e-2}),
    "grpo, reward that is always 0": Case(
        "grpo", "reward without spread", {"reward_funcs": "regex:pattern=never", "allow_equal_rewards": "true"}
    ),
    "grpo, reward for length": Case(
        "grpo",
        "length hacking",
        {"reward_funcs": "benchmarks.doctor:longer", "max_completion_length": 24, "learning_rate": 1e-3},
    ),
    "grpo, answers cut off": Case("grpo", "truncation", {"max_completion_length": 2}),
    "grpo, groups of two": Case("grpo", "groups too small", {"num_generations": 2, "reward_funcs": "exact_match"}),
    "ppo, critic that does not learn": Case("ppo", "dead critic", {"critic_learning_rate": 1e-8}),
    "ppo, KL without weight": Case(
        "ppo",
        "KL blow-up",
        {"reward_funcs": "benchmarks.doctor:late_words", "kl_coef": 1e-6, "learning_rate": 1e-3},
    ),
    "grpo, reward for one word": Case(
        "grpo", "entropy collapse", {"reward_funcs": "benchmarks.doctor:one_word", "learning_rate": 2e-3}
    ),
    "spo, learning rate /100": Case("spo", "learning rate too low", {"learning_rate": 3e-6}),
    **{f"{recipe}, healthy": Case(recipe) for recipe in RECIPES},
}


QUICK = ("sft, learning rate x100", "grpo, answers cut off", "sft, healthy")


def longer(prompts, completions, completion_ids, **_) -> list[float]:
    """A reward that pays for every token."""
    return [len(ids) / 100 for ids in completion_ids]


def one_word(prompts, completions, completion_ids, **_) -> list[float]:
    """A reward for the share of words that are "cold", whatever was asked."""
    said = [messages[-1]["content"].split() for messages in completions]
    return [words.count("cold") / max(len(words), 1) for words in said]


def late_words(prompts, completions, completion_ids, **_) -> list[float]:
    """A reward for words of the second half of the alphabet, whatever was asked."""
    said = [messages[-1]["content"].split() for messages in completions]
    return [sum(word > "m" for word in words) / max(len(words), 1) for words in said]


# --- the toy world ---
def ask(words: list[str]) -> str:
    return f"opposites: {' '.join(words)}?"


def answer(words: list[str]) -> str:
    return " ".join(OPPOSITE[word] for word in words)


def draw(rng: random.Random, count: int, longest: int = 3) -> list[list[str]]:
    return [rng.sample(WORDS, rng.randint(1, longest)) for _ in range(count)]


def chat(words: list[str], said: str | None = None) -> dict:
    turns = [("user", ask(words)), ("assistant", answer(words) if said is None else said)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def pair(rng: random.Random, words: list[str], kind: str) -> dict:
    right, wrong = answer(words), answer(words).split()
    if kind == "alike":
        words = rng.choices(WORDS, k=12)
        return {"prompt": ask(words), "chosen": answer(words), "rejected": f"{answer(words)}."}
    at = rng.randrange(len(wrong))
    wrong[at] = rng.choice([word for word in WORDS if word != wrong[at]])
    sides = [right, " ".join(wrong)]
    if kind == "random":
        rng.shuffle(sides)
    return {"prompt": ask(words), "chosen": sides[0], "rejected": sides[1]}


def make_world(folder: Path) -> None:
    """Mixtures and rows of every kind."""
    rng = random.Random(0)

    def rows(count: int, make: Callable[[list[str]], dict], longest: int = 3) -> list[dict]:
        return [make(words) for words in draw(rng, count, longest)]

    def text(words: list[str]) -> dict:
        return {"text": f"{ask(words)}\n{answer(words)}"}

    def prompt(words: list[str]) -> dict:
        return {"prompt": ask(words), "answer": answer(words)}

    kinds: dict[str, tuple[str, int, Callable]] = {
        "pretrain": ("pretrain", 8000, text),
        "sft": ("sft", 1500, chat),
        "sft_few": ("sft", 24, chat),
        "sft_long": ("sft", 1500, lambda words: chat(words * (6 if len(words) > 1 or rng.random() < 0.9 else 1))),
        "dpo": ("dpo", 800, lambda words: pair(rng, words, "")),
        "dpo_alike": ("dpo", 800, lambda words: pair(rng, words, "alike")),
        "dpo_random": ("reward", 800, lambda words: pair(rng, words, "random")),
        "rlaif": ("rlaif", 1500, prompt),
    }
    for name, (phase, count, make) in kinds.items():
        # Of the prompts, benchmarks/tripwire.py needs many: held-out means shall differ little by chance.
        for split, size in (("train", count), ("validation", 1500 if name == "rlaif" else 600)):
            # The few rows are long ones, of which hardly any is held out as well.
            lines = [json.dumps(row) for row in rows(size, make, longest=6 if name == "sft_few" else 3)]
            (folder / f"{name}_{split}.jsonl").write_text("\n".join(lines) + "\n")
        columns = "[answer]" if phase == "rlaif" else "[]"
        (folder / f"{name}.yaml").write_text(MIXTURE.format(phase=phase, name=name, columns=columns))
    (folder / "reward.yaml").write_text(MIXTURE.format(phase="reward", name="dpo", columns="[]"))


# --- runs ---
def run_recipe(recipe: str, options: dict[str, Any], log: Path) -> None:
    """Run a recipe in this process, its output in a file.

    Raises:
        RuntimeError: it did not end well.
    """
    words = [part for name, value in options.items() for part in (f"--{name}", *str(value).split())]
    with log.open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        sys.argv = [f"recipes/{recipe}.py", *words]
        try:
            runpy.run_path(str(REPOSITORY / "recipes" / f"{recipe}.py"), run_name="__main__")
        except SystemExit as end:
            if not end.code:
                return
            raise RuntimeError(f"recipes/{recipe}.py {' '.join(words)}: exit {end.code}\n{log.read_text()}") from end


def run_start(recipe: str, folder: Path, options: dict[str, Any]) -> None:
    data = {"data_config": folder / f"{recipe}.yaml", "output_dir": folder / "starts" / recipe}
    run_recipe(recipe, COMMON | options | data | {"eval_interval": 0}, folder / f"start_{recipe}.log")


def make_other_tokenizer(folder: Path) -> None:
    """The tokenizer of the starts with another chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "starts" / "sft", trust_remote_code=False)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "other_template")


def make_starts(folder: Path, pretrain_steps: int = PRETRAIN["max_steps"]) -> None:
    """The world, and the checkpoints from which all runs start, unless the folder has them; no runs."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / "runs").mkdir(parents=True)
    make_world(folder)
    if not (folder / "starts" / "pretrain").exists():
        run_start("pretrain", folder, PRETRAIN | {"max_steps": pretrain_steps})
    if not (folder / "starts" / "sft").exists():
        run_start("sft", folder, RECIPES["sft"] | {"from_weight": folder / "starts" / "pretrain", "max_steps": 32})
    if not (folder / "other_template").exists():
        make_other_tokenizer(folder)


def run_case(job: tuple[str, int, Path]) -> dict[str, Any]:
    """One run and what the doctor says of it."""
    from minimind_trl.reports import RunFolder

    name, seed, folder = job
    case, output = CASES[name], folder / "runs" / f"{name} {seed}".replace("/", "by").replace(" ", "_").replace(",", "")
    options = COMMON | RECIPES[case.recipe] | case.options
    options["from_weight"] = folder / "starts" / options["from_weight"]
    if "tokenizer" in options:
        options["tokenizer"] = folder / options["tokenizer"]
    own = {"grpo": "rlaif", "ppo": "rlaif", "spo": "rlaif"}.get(case.recipe, case.recipe)
    options |= {"data_config": folder / f"{case.data or own}.yaml", "output_dir": output, "seed": seed}
    started = time.process_time()
    result = {"case": name, "seed": seed, "fault": case.fault, "findings": []}
    try:
        run_recipe(case.recipe, options, output.with_suffix(".log"))
        run = RunFolder.read(output)
        kept = {name: run.record.get(name) for name in KEPT}
        result |= {"findings": findings_of(run), "record": kept, "history": run.history}
    except RuntimeError as error:
        result["error"] = str(error)
    return result | {"seconds": time.process_time() - started}


def findings_of(run) -> list[dict[str, str]]:
    from minimind_trl.reports import examine

    return [vars(finding) for finding in examine(run)]


def read_again(file: Path) -> list[dict[str, Any]]:
    """Results of an earlier `--output`, examined by the rules as they are now."""
    from minimind_trl.reports import RunFolder

    results = json.loads(file.read_text(encoding="utf-8"))
    for result in results:
        if "error" not in result:
            result["findings"] = findings_of(RunFolder(Path(), result["record"], result["history"]))
    return results


def first_line(result: dict[str, Any]) -> str:
    """The name in the first line of what the doctor prints."""
    return "did not run" if "error" in result else next((one["name"] for one in result["findings"]), "nothing")


def run_all(jobs: list[tuple[str, int, Path]], processes: int) -> list[dict[str, Any]]:
    """Every run in a process of its own, forked from this one, which has imported the libraries."""
    import minimind_trl.run.rl_run
    import minimind_trl.trainers.ppo_trainer
    import minimind_trl.trainers.spo_trainer  # noqa: F401

    results = []
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        for result in pool.imap(run_case, jobs):
            first = first_line(result)
            print(result.get("error", ""), file=sys.stderr, end="")
            print(f"{result['case']}, seed {result['seed']}: {first}, {result['seconds']:.1f} s", file=sys.stderr)
            results.append(result)
    return results


def table(results: list[dict[str, Any]]) -> str:
    """What the doctor said of each case, and the shares of faults named and of false alarms."""
    lines = ["| run | what the first line must name | named | first lines |", "|---|---|---|---|"]
    for name in dict.fromkeys(result["case"] for result in results):
        runs = [result for result in results if result["case"] == name]
        wanted = runs[0]["fault"] or "nothing"
        firsts = [first_line(result) for result in runs]
        named = sum(first == wanted for first in firsts)
        lines.append(f"| {name} | {wanted} | {named} of {len(runs)} | {', '.join(dict.fromkeys(firsts))} |")
    faults = [result for result in results if result["fault"]]
    healthy = [result for result in results if not result["fault"]]
    named = sum(first_line(result) == result["fault"] for result in faults)
    alarms = sum(first_line(result) != "nothing" for result in healthy)
    seconds = sum(result["seconds"] for result in results)
    lines.append(
        f"\n{named} of {len(faults)} planted faults named in the first line; {alarms} of {len(healthy)} healthy runs "
        f"with an alarm. {seconds / max(len(results), 1):.1f} s of CPU a run."
    )
    return "\n".join(lines)


@contextlib.contextmanager
def prepared_folder(folder: Path | None, **options: int) -> Iterator[Path]:
    """A folder with the world and the starts, from the repository's top folder, where the rewards are found."""
    with tempfile.TemporaryDirectory() as temporary:
        made = (folder or Path(temporary)).resolve()
        with contextlib.chdir(REPOSITORY):
            make_starts(made, **options)
            yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, help="keep the runs here; starts that are there are used again")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="three cases only; exits with 1 where the doctor is wrong")
    parser.add_argument("--read", type=Path, help="train nothing: examine the runs of an earlier --output again")
    args = parser.parse_args()
    if args.quick:
        args.cases, args.seeds = list(QUICK), args.seeds[:1]
    if args.read:
        print(table(read_again(args.read)))
        return
    with prepared_folder(args.folder, **{"pretrain_steps": 60} if args.quick else {}) as folder:
        results = run_all([(name, seed, folder) for name in args.cases for seed in args.seeds], args.jobs)
    print(table(results))
    if args.output:
        args.output.write_text(json.dumps(results) + "\n", encoding="utf-8")
    wrong = [result["case"] for result in results if first_line(result) != (result["fault"] or "nothing")]
    if args.quick and wrong:
        sys.exit(f"the doctor is wrong about: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
