"""What the recipes refuse before any training: each with exit code 2, one line, and nothing left behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from minimind_trl.data import LOCK, DatasetMixer, prepare
from minimind_trl.models import MiniMindForCausalLM, MiniMindForSequenceClassification
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import REPOSITORY, small_config
from tests.forking import run

SFT = ["--data_config", "data_configs/tiny/sft.yaml", "--output_dir", "{new}"]
SCRATCH = ["--preset", "tiny", *SFT]
LOADED = ["--from_weight", "{model}", *SFT]
DPO = ["--data_config", "data_configs/tiny/dpo.yaml", "--output_dir", "{new}"]
SHORT = ["--max_steps", "2", "--eval_interval", "0"]


def mixture(name: str) -> list[str]:
    return ["--from_weight", "{model}", "--data_config", f"{{folder}}/{name}.yaml", "--output_dir", "{new}"]


def merging(phase: str) -> list[str]:
    """A model whose tokenizer makes one token of two line ends, unless a word follows."""
    return ["--from_weight", "{merging}", "--data_config", f"{{folder}}/merged_{phase}.yaml", "--output_dir", "{new}"]


RLAIF = ["--data_config", "data_configs/tiny/rlaif.yaml", "--output_dir", "{new}", "--max_completion_length", "4"]
RL = ["--from_weight", "{model}", *RLAIF]
MATCH = [*RL, "--reward_funcs", "position_match"]


def own(function: str) -> list[str]:
    """A reward of tests/recipes/own_rewards.py."""
    return [*RL, "--reward_funcs", f"tests.recipes.own_rewards:{function}"]


# recipe, options, what the message says
REFUSED = [
    # --- online RL ---
    ("grpo", RL, "no reward: give --reward_funcs"),
    ("grpo", [*RL, "--reward_funcs", "exactmatch"], "no such reward; did you mean 'exact_match'?"),
    ("grpo", [*MATCH, "--reward_weights", "1", "2"], "--reward_weights has 2 values, --reward_funcs 1"),
    ("grpo", [*RL, "--reward_funcs", "length:lo=3"], "no parameter 'lo'; did you mean 'low'?"),
    ("grpo", [*RL, "--reward_funcs", "tool_calls"], "reward tool_calls needs the column 'gt'; the mixture's rows have"),
    (
        "grpo",
        [*RL, "--reward_funcs", "{model}"],
        "is a MiniMindForCausalLM: train a reward model with recipes/reward.py",
    ),
    ("grpo", [*RL, "--reward_funcs", "{small_reward}"], "tokens, its tokenizer 556: they do not belong together"),
    ("grpo", own("nothing"), "completions have no reward: nothing returned None for them"),
    ("grpo", own("not_a_number"), "reward not_a_number returned nan, not a finite number or None"),
    ("grpo", own("too_few"), "reward too_few returned 1 values for 8 completions"),
    ("grpo", own("fails"), "reward fails raised KeyError: 'missing'; for the completion "),
    ("grpo", own("constant"), "the reward is 1 for all of 32 answers to training prompts: nothing to learn from"),
    ("grpo", own("no_such"), "has no function 'no_such'"),
    ("grpo", [*MATCH, "--num_generations", "1"], "For one completion per prompt use recipes/spo.py or recipes/ppo.py"),
    ("grpo", [*MATCH, "--num_generations", "6"], "Set --num_generations 4, or --per_device_train_batch_size 6"),
    ("grpo", [*MATCH, "--max_completion_length", "2040"], "prompts have more than 8 tokens"),
    ("grpo", [*MATCH, "--max_completion_length", "4096"], "leave no room in the model's 2048 positions: set it lower"),
    ("grpo", [*MATCH, "--per_device_train_batch_size", "5000"], "answers 5000 prompts, and there are 3000"),
    ("grpo", ["--from_weight", "{model}", *SFT, "--reward_funcs", "exact_match"], "but this recipe trains rlaif"),
    (
        "grpo",
        [*MATCH, "--loss_type", "cipso"],
        "cispo, sapo, luspo, vespo; did you mean 'cispo'?",
    ),
    ("spo", [*MATCH, "--num_generations", "4"], "--num_generations 4: SPO samples one completion per prompt"),
    ("ppo", [*MATCH, "--epsilon", "0.1"], "--epsilon is set by --cliprange"),
    (
        "ppo",
        [*MATCH, "--critic_model", "{small_reward}"],
        "300 tokens, the policy 556: the critic reads the policy's tokens",
    ),
    ("spo", [*MATCH, "--reward_range", "0", "-1"], "two numbers, the lower one first"),
    ("spo", own("unbounded"), "the range of reward unbounded is not known: give --reward_range LOWEST HIGHEST"),
    ("spo", [*MATCH, "--tracker", "globl"], "--tracker globl: must be one of prompt, global; did you mean 'global'?"),
    # --- the options ---
    ("sft", [*SCRATCH, "--learning_rat", "1"], "unknown option --learning_rat; did you mean '--learning_rate'?"),
    ("sft", ["--from_weight", "x", *SCRATCH], "exactly one of --preset"),
    ("sft", ["--preset", "minimind4", *SFT], "'minimind4' is unknown; did you mean 'minimind3'?; choose one of nano"),
    ("sft", ["--config", "missing.yaml"], "--config missing.yaml: no such file"),
    ("sft", ["--config"], "--config needs a file"),
    ("sft", [*SCRATCH, "--eval_steps", "5"], "is set by --eval_interval"),
    ("sft", [*SCRATCH, "--num_attention_heads", "2"], "--num_attention_heads is for a native .pth file"),
    ("sft", [*SCRATCH, "--lora_r", "4"], "--lora_r: for a run with --use_peft"),
    ("sft", [*SCRATCH, "--wandb_project", "x"], "--wandb_project is for a run with --use_wandb"),
    ("sft", [*SCRATCH, "--prepared_dir", "x"], "--prepared_dir is for a run with --use_prepared"),
    ("midtrain", ["--preset", "tiny", "--data_config", "data_configs/tiny/midtrain.yaml"], "give --from_weight"),
    ("distill", LOADED, "give the teacher: --teacher_model_name_or_path"),
    ("distill", [*LOADED, "--teacher_model_name_or_path", "{model}", "--packing"], "has no --packing"),
    # --- the model and its tokenizer ---
    ("sft", ["--preset", "minimind3", *SFT], "minimind3 brings no tokenizer; give --tokenizer"),
    ("sft", ["--from_weight", "{new}/nothing", *SFT], "nothing: no such file or directory"),
    ("sft", ["--from_weight", "{new}.pth", *SFT], "new.pth: no such file"),
    ("sft", ["--from_weight", "{reward}", *SFT], "is a MiniMindForSequenceClassification, which generates no text"),
    ("sft", ["--from_weight", "{small}", "--tokenizer", "{model}", *SFT], "the tokenizer has 556 tokens, "),
    ("sft", [*LOADED, "--tokenizer", "{other_words}"], "has another vocabulary than"),
    ("sft", [*LOADED, "--tokenizer", "{no_template}"], "has no chat template"),
    ("sft", [*LOADED, "--tokenizer", "{no_pad}"], "the tokenizer has no padding token"),
    ("sft", [*LOADED, "--tokenizer", "{endless}"], "end-of-turn token"),
    ("reward", ["--from_weight", "{model}", *DPO, "--tokenizer", "{pad_is_eos}"], "pad_token and eos_token are both"),
    (
        "distill",
        [*LOADED, "--teacher_model_name_or_path", "{small}"],
        "they must share a tokenizer, as probabilities are compared token by token",
    ),
    # --- where the prompt ends and the answer begins ---
    *(
        (recipe, [*merging(phase), *more], "the prompt ends in '\\n\\n' (")
        for recipe, phase, more in (
            ("sft", "sft", []),
            ("midtrain", "midtrain", []),
            ("distill", "sft", ["--teacher_model_name_or_path", "{merging}"]),
            ("dpo", "dpo", []),
            ("reward", "dpo", []),
            *((recipe, "rlaif", ["--reward_funcs", "position_match"]) for recipe in ("grpo", "ppo", "spo")),
        )
    ),
    # --- the data ---
    ("sft", ["--preset", "tiny", *DPO], "phase 'dpo', but this recipe trains sft or distill"),
    ("sft", ["--preset", "tiny", "--data_config", "missing.yaml", "--output_dir", "{new}"], "missing.yaml: no such"),
    ("sft", mixture("long"), "rows are longer than --max_length 16; half of them fit in"),
    ("sft", [*LOADED, "--max_length", "4096"], "--max_length 4096 is more than the model's 2048 positions"),
    ("sft", [*LOADED, "--max_length", "9"], "rows are longer than --max_length 9; half of them fit in 27"),
    ("sft", mixture("few"), "validation"),
    ("sft", mixture("both"), "train"),
    ("dpo", mixture("same"), "line 1: chosen equals rejected"),
    ("sft", mixture("streaming"), "a streaming mixture has no known end: set --max_steps"),
    (
        "sft",
        [*LOADED, "--packing", "false", "--per_device_train_batch_size", "6000"],
        "set --per_device_train_batch_size 400",
    ),
    # --- the folder ---
    ("sft", ["--preset", "tiny", *SFT[:2], "--output_dir", "{model}"], "not empty; give a new one, or --resume auto"),
    ("sft", [*LOADED, "--resume", "{folder}/checkpoint-9"], "checkpoint-9: no such folder"),
    ("sft", [*SCRATCH, "--resume", "{torn}/checkpoint-2"], "/checkpoint-2: optimizer.pt has 9 bytes of "),
    (
        "sft",
        [*SCRATCH[:4], "--output_dir", "{torn}", *SHORT, "--resume", "auto"],
        "/checkpoint-2 is skipped: optimizer.pt has 9 bytes of ",
    ),
    (
        "sft",
        [*SCRATCH, "--use_prepared", "--prepared_dir", "{prepared}"],
        "mixture.lock.json: not as it was written (edited?); undo that, or remove ",
    ),
    (
        "sft",
        [*SCRATCH[:4], "--output_dir", "{run}", *SHORT, "--resume", "auto", "--learning_rate", "1e-3"],
        "learning_rate was 0.003 and is 0.001. Resume with its settings, or start a new run: --from_weight",
    ),
    (
        "sft",
        ["--preset", "nano", *SFT[:2], "--output_dir", "{run}", *SHORT, "--resume", "auto"],
        "hidden_size was 128 and is 64",
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What came of every case; all in one process, and each looked at what the ones before had left."""
    folder = tmp_path_factory.mktemp("refused")
    paths = make_input(folder)
    cases = [
        {"recipe": recipe, "options": [option.format(**paths) for option in options]} for recipe, options, _ in REFUSED
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    before = {path for path in folder.rglob("*")}
    done = run("tests/recipes/run_many.py", [folder / "cases.json"])
    assert done.returncode == 0, done.stderr
    left = {path for path in folder.rglob("*")} - before
    assert not left
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[message[:40] for *_, message in REFUSED])
def test_it_is_refused_in_one_line(results, number):
    result, message = results[number], REFUSED[number][-1]
    assert result["code"] == 2, result
    error = f"\n{result['err']}".split("\nerror: ")[-1]
    assert message in error and "Traceback" not in result["err"], result["err"]


def test_a_recipe_as_a_program_ends_the_same_way(tmp_path):
    command = [sys.executable, "recipes/sft.py", *(option.format(new=tmp_path / "new") for option in SCRATCH)]
    done = subprocess.run([*command, "--learning_rat", "1"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: unknown option --learning_rat; did you mean '--learning_rate'?"]


def make_input(folder: Path) -> dict[str, str]:
    """Checkpoints, tokenizers, mixtures and a run to resume, by the names that the cases use."""
    names = (
        "model",
        "small",
        "reward",
        "small_reward",
        "other_words",
        "no_template",
        "no_pad",
        "endless",
        "pad_is_eos",
        "torn",
        "prepared",
        "merging",
    )
    paths = {name: folder / name for name in names} | {"new": folder / "new", "folder": folder, "run": folder / "run"}
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    for name, model in {
        "model": MiniMindForCausalLM(small_config("dense3", **sizes)),
        "small": MiniMindForCausalLM(small_config("dense3", vocab_size=300)),
        "reward": MiniMindForSequenceClassification(small_config("dense3", **sizes, num_labels=1)),
        "small_reward": MiniMindForSequenceClassification(small_config("dense3", vocab_size=300, num_labels=1)),
    }.items():
        model.save_pretrained(paths[name])
        tokenizer.save_pretrained(paths[name])
    write_tokenizers(paths)
    MiniMindForCausalLM(small_config("dense3", **sizes)).save_pretrained(paths["merging"])
    write_mixtures(folder)
    options = ["--preset", "tiny", *SFT[:2], "--output_dir", str(paths["run"]), *SHORT, "--save_steps", "1"]
    started = run("recipes/sft.py", options)
    assert started.returncode == 0, started.stderr
    shutil.copytree(paths["run"] / "checkpoint-2", paths["torn"] / "checkpoint-2")
    (paths["torn"] / "checkpoint-2" / "optimizer.pt").write_bytes(b"cut off: ")
    prepare(DatasetMixer.from_yaml("data_configs/tiny/sft.yaml"), paths["prepared"] / "sft_sft")
    lock = paths["prepared"] / "sft_sft" / LOCK
    lock.write_text(lock.read_text().replace('"seed": 42', '"seed": 7'))
    return {name: str(path) for name, path in paths.items()}


def write_tokenizers(paths: dict[str, Path]) -> None:
    content = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    content["model"]["vocab"] = {
        token: (number + 1) % 256 if number < 256 else number for token, number in content["model"]["vocab"].items()
    }
    tiny_tokenizer().save_pretrained(paths["other_words"])
    (paths["other_words"] / "tokenizer.json").write_text(json.dumps(content))
    content = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    ends = max(content["model"]["vocab"], key=content["model"]["vocab"].get)  # learned last, and part of no other
    content["model"]["vocab"]["ĊĊ"] = content["model"]["vocab"].pop(ends)
    content["model"]["merges"][-1] = ["Ċ", "Ċ"]
    tiny_tokenizer().save_pretrained(paths["merging"])
    (paths["merging"] / "tokenizer.json").write_text(json.dumps(content))
    for name, change in {
        "no_template": {"chat_template": None},
        "no_pad": {"pad_token": None},
        "pad_is_eos": {"pad_token": tiny_tokenizer().eos_token},
        "endless": {
            "chat_template": "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}"
            "<|im_end|>{% endfor %}"
        },
    }.items():
        tokenizer = tiny_tokenizer()
        for attribute, value in change.items():
            setattr(tokenizer, attribute, value)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        tokenizer.save_pretrained(paths[name])


def write_mixtures(folder: Path) -> None:
    def chat(question: str, answer: str) -> dict:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    def pair(number: int) -> dict:
        return {"prompt": f"words: {number}", "chosen": "same", "rejected": "same"}

    rows = {
        "long": [chat(f"words: {'cat ' * 40}{n}", "cat") for n in range(100)],
        "few": [chat("words: cat", "cat"), chat("words: dog", "dog")],
        "both": [chat(f"words: {n}", str(n)) for n in range(100)],
        "same": [pair(n) for n in range(100)],
        "streaming": [chat(f"words: {n}", str(n)) for n in range(100)],
        "merged_sft": [chat(f"words: {n}", "cat") for n in range(100)],
        "merged_midtrain": [chat(f"words: {n}", "cat") for n in range(100)],
        "merged_dpo": [{"prompt": f"words: {n}", "chosen": "cat", "rejected": "dog"} for n in range(100)],
        "merged_rlaif": [{"prompt": f"words: {n}", "answer": "cat"} for n in range(100)],
    }
    changes = {
        "long": {"metadata": {"phase": "sft", "max_seq_length": 16}},
        "same": {"metadata": {"phase": "dpo"}},
        "streaming": {"streaming": True},
        **{f"merged_{phase}": {"metadata": {"phase": phase}} for phase in ("midtrain", "dpo", "rlaif")},
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        source = {"name": name, "source": f"{name}.jsonl"}
        if name == "both":  # the same file on both sides
            source |= {
                "source": ".",
                "format": "jsonl",
                "data_files": {"train": "both.jsonl", "validation": "both.jsonl"},
            }
        config = {"metadata": {"phase": "sft"}, "datasets": [source]} | changes.get(name, {})
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
