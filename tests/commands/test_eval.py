"""`minimind-trl eval`, and the measures that it reports."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from minimind_trl.cli import main
from minimind_trl.evaluation import held_out_figures
from minimind_trl.evaluation.answers import answer_measures, guessing_measures, repeated_ngrams
from minimind_trl.evaluation.measures import Measure, mean, share
from minimind_trl.evaluation.pairs import pair_log_probs, preference_measures, reward_measures
from minimind_trl.models import MiniMindForCausalLM, MiniMindForSequenceClassification, save_native
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import small_config


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


CHATS = [{"messages": user(f"add 1 to {n}") + assistant(f"{n + 1}"), "skill": "ab"[n % 2]} for n in range(40)]
PAIRS = [
    {"prompt": user(f"copy: cat {'hen ' * (n % 3)}{n}"), "chosen": assistant(f"cat {n}"), "rejected": assistant("dog")}
    for n in range(40)
]
PROMPTS = [{"prompt": user(f"copy: cat {n}"), "answer": f"cat {n}"} for n in range(40)]
ROWS = {
    "pretrain": [{"text": f"cat {n} dog"} for n in range(40)],
    "sft": CHATS,
    "dpo": PAIRS,
    "reward": PAIRS,
    "rlaif": PROMPTS,
}


@pytest.fixture
def mixture(tmp_path):
    """Writes a mixture of a phase; a fifth of its rows is held out."""

    def write(phase: str, rows: list[dict] | None = None) -> str:
        lines = [json.dumps(row) for row in rows or ROWS[phase]]
        (tmp_path / f"{phase}.jsonl").write_text("\n".join(lines) + "\n")
        keep = ", keep_columns: [skill]" if phase == "sft" else ""
        path = tmp_path / f"{phase}.yaml"
        path.write_text(
            f"metadata: {{phase: {phase}, max_seq_length: 96}}\n"
            f"datasets: [{{name: own, source: {phase}.jsonl{keep}}}]\n"
            "validation: {ratio: 0.2}\n"
        )
        return str(path)

    return write


@pytest.fixture(scope="module")
def reward_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(1)
    MiniMindForSequenceClassification(small_config("dense3", num_labels=1)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def evaluate(capsys, tmp_path, *arguments) -> tuple[dict, str]:
    output = tmp_path / "out" / "figures.json"
    code = main(["eval", *map(str, arguments), "--output", str(output)])
    captured = capsys.readouterr()
    assert code == 0 and (captured.err == "" or {"--lm_eval", "--suite"} & {*arguments})  # whose progress bars show
    return json.loads(output.read_text()), captured.out


def values(report: dict, column: str = "model") -> dict:
    return {name: measure["value"] for name, measure in report["figures"][column].items()}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["pretrain", "sft"])
def test_losses_are_those_of_training(checkpoints, mixture, capsys, tmp_path, phase):
    from minimind_trl.data import DatasetMixer

    path = mixture(phase)
    report, out = evaluate(capsys, tmp_path, checkpoints["dense3"], "--data_config", path, "--no-bf16")
    rows = DatasetMixer.from_yaml(path).build(tiny_tokenizer())["validation"]
    model = MiniMindForCausalLM.from_pretrained(checkpoints["dense3"])
    expected = held_out_figures(
        model, tiny_tokenizer(), rows, max_length=96, batch_size=16, assistant_only=phase == "sft"
    )
    assert values(report) == pytest.approx(expected, rel=1e-6)
    assert values(report, "chance")["eval_loss_own"] == pytest.approx(math.log(768))
    assert "baseline" not in report["figures"]
    assert "eval_bits_per_byte" in out and "chance" in out


@pytest.mark.parametrize("trained", [None, "cut"])
def test_long_texts_are_measured_as_they_were_trained_on(checkpoints, mixture, capsys, tmp_path, trained):
    """In pieces, as the phase has it; or cut, where the checkpoint was trained so."""
    from minimind_trl.data import DatasetMixer

    folder = tmp_path / "trained"
    MiniMindForCausalLM.from_pretrained(checkpoints["dense3"]).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    if trained:
        (folder / "metrics.json").write_text(json.dumps({"options": {"phase": "pretrain", "on_long": trained}}))
    path = mixture("pretrain", [{"text": f"{n} cat dog " * 30} for n in range(40)])
    asked = ["--max_length", 32, "--eval_batches", 2, "--batch_size", 3, "--no-bf16"]
    report, _ = evaluate(capsys, tmp_path, folder, "--data_config", path, *asked)
    rows = DatasetMixer.from_yaml(path).build(tiny_tokenizer())["validation"]
    model = MiniMindForCausalLM.from_pretrained(folder)
    options = {"max_length": 32, "batch_size": 3, "max_batches": 2, "chunk": trained is None}
    assert values(report) == pytest.approx(held_out_figures(model, tiny_tokenizer(), rows, **options), rel=1e-6)
    assert report["figures"]["model"]["eval_num_rows"]["value"] == 6


def test_a_mixture_that_holds_no_rows_out_has_none_to_measure(checkpoints, mixture, capsys):
    path = mixture("pretrain")
    file = Path(path)
    file.write_text(file.read_text().replace("validation: {ratio: 0.2}", "validation: none"))
    assert main(["eval", str(checkpoints["dense3"]), "--data_config", path]) == 2
    assert "holds out no rows (validation: none): there is nothing to measure on" in capsys.readouterr().err


def test_settings_are_those_of_the_training_of_that_phase(checkpoints, mixture, capsys, tmp_path):
    folder = tmp_path / "trained"
    MiniMindForCausalLM.from_pretrained(checkpoints["dense3"]).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    options = {"phase": "sft", "max_length": 50, "batch_size": 2, "eval_batches": 3, "bf16": False, "other": 1}
    (folder / "metrics.json").write_text(json.dumps({"options": options}))
    report, _ = evaluate(capsys, tmp_path, folder, "--data_config", mixture("sft"), "--eval_batches", 2)
    assert report["options"]["max_length"] == 50 and report["options"]["bf16"] is False
    assert values(report)["eval_num_rows"] == 4
    report, _ = evaluate(capsys, tmp_path, folder, "--data_config", mixture("pretrain"))
    assert report["options"]["max_length"] == 96 and report["options"]["batch_size"] == 16


def test_answers_beside_a_baseline(checkpoints, mixture, capsys, tmp_path):
    report, out = evaluate(
        *(capsys, tmp_path, checkpoints["dense3"], "--data_config", mixture("sft")),
        *("--baseline", checkpoints["moe3"], "--generate", 5, "--max_new_tokens", 4),
    )
    for column in ("model", "baseline"):
        figures = report["figures"][column]
        assert figures["exact_match"]["count"] == 5 and figures["exact_match"]["low"] == 0
        assert {"end_of_turn_rate", "repeated_4gram_rate", "answer_tokens"} <= set(figures)
        assert figures["answer_tokens"]["value"] <= 4
    assert values(report) != values(report, "baseline")
    assert values(report, "chance")["exact_match"] == 0.2
    assert any(name.startswith("exact_match_") for name in report["figures"]["chance"])
    assert "baseline" in out


def test_prompts_of_reinforcement_learning(checkpoints, mixture, capsys, tmp_path):
    path = mixture("rlaif")
    report, _ = evaluate(
        capsys, tmp_path, checkpoints["dense3"], "--data_config", path, "--generate", 3, "--max_new_tokens", 4
    )
    assert list(values(report)) == ["exact_match", "end_of_turn_rate", "repeated_4gram_rate", "answer_tokens"]


def test_preferences(checkpoints, mixture, capsys, tmp_path):
    arguments = (checkpoints["dense3"], "--data_config", mixture("dpo"))
    report, _ = evaluate(capsys, tmp_path, *arguments)
    assert set(values(report)) == {"eval_log_prob_accuracy", "eval_log_prob_margin"}
    assert values(report, "chance") == {"eval_log_prob_accuracy": 0.5, "eval_log_prob_margin": 0}
    report, _ = evaluate(capsys, tmp_path, *arguments, "--baseline", checkpoints["dense3"])
    assert values(report)["eval_rewards/margins"] == 0
    assert values(report)["eval_loss"] == pytest.approx(math.log(2)) == values(report, "chance")["eval_loss"]


def test_reward_models(reward_checkpoint, mixture, capsys, tmp_path):
    report, _ = evaluate(capsys, tmp_path, reward_checkpoint, "--data_config", mixture("reward"))
    assert set(values(report)) == {"eval_accuracy", "eval_margin", "eval_loss"}
    assert values(report, "chance") == pytest.approx({"eval_accuracy": 0.5, "eval_margin": 0, "eval_loss": math.log(2)})
    accuracy = report["figures"]["model"]["eval_accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_native_files_and_adapters(checkpoints, mixture, capsys, tmp_path):
    arguments = ("--data_config", mixture("sft"), "--no-bf16")
    model = MiniMindForCausalLM.from_pretrained(checkpoints["dense3"])
    save_native(model, tmp_path / "native_64.pth", torch.float32)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    plain, _ = evaluate(capsys, tmp_path, checkpoints["dense3"], *arguments)
    native, _ = evaluate(capsys, tmp_path, tmp_path / "native_64.pth", *arguments, "--tokenizer", "tiny")
    assert values(native) == pytest.approx(values(plain), rel=1e-5)
    lora, _ = evaluate(capsys, tmp_path, tmp_path / "adapter", *arguments, "--baseline", tmp_path / "native_64.pth")
    assert values(lora, "baseline") == pytest.approx(values(plain), rel=1e-5)
    assert values(lora)["eval_loss"] != pytest.approx(values(plain)["eval_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "nothing to evaluate on"),
        (["--data_config", "{sft}", "--batch_size", "0"], "--batch_size 0: must be at least 1"),
        (["--data_config", "{pretrain}", "--generate", "3"], "is of phase pretrain"),
        (["--data_config", "{rlaif}"], "give --generate N"),
        (["--data_config", "{reward}"], "is a language model; phase reward needs a reward model"),
        (["--data_config", "{sft}", "--baseline", "{reward_model}"], "is a reward model; phase sft needs"),
        (["--data_config", "{sft}", "--baseline", "./nowhere"], "./nowhere: no such checkpoint directory"),
        (["--data_config", "{sft}", "--tokenizer", "./nowhere"], "./nowhere: no such file or directory"),
        (["--data_config", "{sft}", "--max_length", "3"], "no held-out row has a token to predict"),
        (["--data_config", "{dpo}", "--max_length", "3"], "no held-out pair fits into max_length=3"),
        (["--data_config", "{sft}", "--output", "{folder}"], "is a folder; give a file"),
        (["--lm_eval_include_path", "x", "--data_config", "{sft}"], "is for --lm_eval TASK"),
        (["--limit", "3", "--num_fewshot", "1", "--data_config", "{sft}"], "--num_fewshot, --limit: this is for --lm"),
        (["--apply_chat_template", "--data_config", "{sft}"], "--apply_chat_template: this is for --lm_eval TASK"),
        (["--lm_eval", "x", "--limit", "0"], "--limit 0: a number of questions from 1 on"),
        (["--lm_eval", "x", "--limit", "2.5"], "--limit 2.5: a number of questions from 1 on"),
        (["--lm_eval", "x", "--limit", "nan"], "--limit nan: a number of questions from 1 on"),
        (["--lm_eval", "x", "--num_fewshot", "-1"], "--num_fewshot -1: must be 0 or more"),
        (["--data_config", "./nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_told_in_one_line(
    checkpoints, reward_checkpoint, mixture, capsys, tmp_path, monkeypatch, options, told
):
    monkeypatch.chdir(tmp_path)
    places = {phase: mixture(phase) for phase in ROWS} | {"reward_model": reward_checkpoint, "folder": str(tmp_path)}
    code = main(["eval", str(checkpoints["dense3"]), *(option.format(**places) for option in options)])
    error = capsys.readouterr().err
    assert code == 2 and told in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: folder / "gone", "no such checkpoint directory"),
        (lambda folder: save_small(folder, tokenizer=False), "brings no tokenizer; give --tokenizer DIR"),
        (lambda folder: save_small(folder, vocab_size=300), "the tokenizer has 556 tokens"),
    ],
)
def test_checkpoints_that_do_not_do(mixture, capsys, tmp_path, make, told):
    code = main(["eval", str(make(tmp_path / "checkpoint")), "--data_config", mixture("sft")])
    error = capsys.readouterr().err
    assert code == 2 and told in error and error.count("\n") == 1


def save_small(folder, tokenizer=True, **overrides):
    MiniMindForCausalLM(small_config("dense3", **overrides)).save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


# --- the measures -----------------------------------------------------------------------------------------------------


TRAINER = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "max_length": 40}


def small_model(seed: int) -> MiniMindForCausalLM:
    torch.manual_seed(seed)
    return MiniMindForCausalLM(small_config("dense3"))


def test_preferences_are_those_of_trl(tmp_path):
    """Of rows that are cut, too, and of one that is left out because its prompt alone is too long."""
    rows = [*PAIRS, {"prompt": user("cat " * 50), "chosen": assistant("1"), "rejected": assistant("2")}]
    rows = [*rows[:8], rows[-1], {**PAIRS[0], "chosen": assistant("cat " * 40)}]
    model, reference, tokenizer = small_model(0), small_model(1), tiny_tokenizer()
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(output_dir=str(tmp_path), per_device_eval_batch_size=16, **TRAINER),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
    )
    theirs = trainer.evaluate()
    options = {"max_length": 40, "batch_size": 4}
    log_probs, of_reference = (pair_log_probs(one, tokenizer, rows, **options) for one in (model, reference))
    assert log_probs.shape == (9, 2)
    ours = preference_measures(log_probs, of_reference)
    for name in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"):
        assert ours[name].value == pytest.approx(theirs[name], abs=1e-4)
    chosen, rejected = log_probs.T
    assert ours["eval_log_prob_margin"].value == pytest.approx((chosen - rejected).mean().item())
    assert ours["eval_log_prob_accuracy"].value == pytest.approx((chosen > rejected).double().mean().item())


def test_rewards_are_those_of_trl(tmp_path):
    rows = [*PAIRS[:8], {**PAIRS[0], "chosen": assistant("cat " * 40)}]  # the last is left out
    torch.manual_seed(0)
    model, tokenizer = MiniMindForSequenceClassification(small_config("dense3", num_labels=1)), tiny_tokenizer()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(output_dir=str(tmp_path), per_device_eval_batch_size=16, **TRAINER),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
    )
    theirs = trainer.evaluate()
    ours = reward_measures(model, tokenizer, rows, max_length=40, batch_size=3)
    assert ours["eval_accuracy"].count == 8
    assert {name: measure.value for name, measure in ours.items()} == pytest.approx(
        {name: theirs[name] for name in ours}, abs=1e-5
    )


def test_wilson_interval():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    known = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (right, count), interval in known.items():
        measure = share([True] * right + [False] * (count - right))
        assert (measure.low, measure.high) == pytest.approx(interval, abs=5e-5)
    assert share([True] * 20).high == 1


def test_normal_interval():
    measure = mean([1.0, 2.0, 3.0, 4.0])
    assert (measure.value, measure.count) == (2.5, 4)
    assert measure.high - measure.value == pytest.approx(1.959964 * 1.290994 / 2, rel=1e-5)
    assert mean([3.0]) == Measure(3.0, count=1)
    assert Measure(math.nan, count=2).as_dict() == {"value": None, "count": 2}


def test_repeated_ngrams():
    assert repeated_ngrams([1, 2, 3, 4, 5], 4) == 0
    assert repeated_ngrams([1] * 8, 4) == 0.8
    assert repeated_ngrams([1, 2, 3], 4) == 0


def test_answers_are_graded(monkeypatch):
    """By the column `answer`, else the last turn; without think block and spaces; tool calls do not count."""
    tokenizer = tiny_tokenizer()
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]}
    rows = [
        {"messages": user("?") + assistant(" 7"), "answer": "cat dog", "skill": "copy"},
        {"messages": user("?") + assistant("<think>\nhm\n</think>\n\ncat"), "answer": None, "skill": "copy"},
        {"prompt": user("?"), "answer": 7, "skill": None},
        {"prompt": user("?"), "answer": None, "skill": "copy"},
        {"messages": [*user("?"), call]},
    ]
    said = ["<think>\nso\n</think>\n\ncat  dog\n<|im_end|>", "dog<|im_end|>", "7", "7", "7 7 7 7 7 7 7 7<|im_end|>"]
    ids = [tokenizer(text)["input_ids"] for text in said]
    monkeypatch.setattr("minimind_trl.evaluation.answers.generate_tokens", lambda *_: ids)
    measures = answer_measures(None, tokenizer, rows, 8)
    assert (measures["exact_match"].value, measures["exact_match"].count) == (pytest.approx(2 / 3), 3)
    assert (measures["exact_match_copy"].value, measures["exact_match_copy"].count) == (0.5, 2)
    assert measures["end_of_turn_rate"].value == 0.6
    assert measures["answer_tokens"].value == (sum(map(len, ids)) - 3) / 5
    assert measures["repeated_4gram_rate"].value > 0
    assert {name: guess.value for name, guess in guessing_measures(rows).items()} == {
        "exact_match": pytest.approx(1 / 3),
        "exact_match_copy": 0.5,
    }


# --- standard benchmarks ----------------------------------------------------------------------------------------------


def test_the_harness_is_optional(checkpoints, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    assert main(["eval", str(checkpoints["dense3"]), "--lm_eval", "arc_easy"]) == 2
    assert "pip install 'minimind-trl[eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"apply_chat_template": False, "num_fewshot": None, "limit": None}),
        (("--apply_chat_template", "--num_fewshot", 2), {"apply_chat_template": True, "num_fewshot": 2, "limit": None}),
        (("--limit", 8), {"apply_chat_template": False, "num_fewshot": None, "limit": 8}),
        (("--lm_eval_limit", 0.25), {"apply_chat_template": False, "num_fewshot": None, "limit": 0.25}),
    ],
)
def test_the_harness_is_told_how_to_ask(checkpoints, capsys, tmp_path, monkeypatch, options, expected):
    told = {}

    def harness(model, tokenizer, tasks, **given):
        told.update(given)
        return {"task/acc": Measure(0.5)}, {}

    monkeypatch.setattr("minimind_trl.evaluation.harness.check_installed", lambda: None)
    monkeypatch.setattr("minimind_trl.evaluation.harness.harness_measures", harness)
    report, _ = evaluate(capsys, tmp_path, checkpoints["dense3"], "--lm_eval", "task", *options)
    assert {name: told[name] for name in expected} == expected
    assert {name: report["options"][name] for name in expected} == expected


def test_a_suite_names_its_benchmarks_and_says_what_is_chance(checkpoints, capsys, tmp_path, monkeypatch):
    asked = []

    def harness(model, tokenizer, tasks, **given):
        asked.extend(tasks)
        return {"piqa/acc": Measure(0.52, 0.45, 0.59, 200), "arc_easy/acc": Measure(0.4, 0.35, 0.45, 400)}, {
            "piqa/acc": Measure(0.5),
            "arc_easy/acc": Measure(0.25),
        }

    monkeypatch.setattr("minimind_trl.evaluation.harness.check_installed", lambda: None)
    monkeypatch.setattr("minimind_trl.evaluation.harness.harness_measures", harness)
    _, out = evaluate(capsys, tmp_path, checkpoints["dense3"], "--suite", "minimind", "--limit", 200)
    assert asked == ["ceval-valid", "cmmlu", "arc_easy", "piqa", "openbookqa", "hellaswag", "social_iqa"]
    assert "piqa/acc: 0.5200 cannot be told from chance (0.5000)" in out and "arc_easy/acc: " not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "mmlu"], "--suite mmlu: choose one of minimind"),
        (["--suite", "minimind", "--lm_eval", "piqa"], "give one of them"),
        (["--suite", "minimind", "--limit", "0"], "--limit 0: a number of questions"),
    ],
)
def test_a_suite_is_refused_in_one_line(checkpoints, capsys, options, message):
    assert main(["eval", str(checkpoints["dense3"]), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_chat_template_that_is_not_there_is_not_applied(checkpoints, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("minimind_trl.evaluation.harness.check_installed", lambda: None)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    options = ["--lm_eval", "task", "--apply_chat_template", "--tokenizer", str(tmp_path)]
    assert main(["eval", str(checkpoints["dense3"]), *options]) == 2
    assert "has no chat template; leave it out" in capsys.readouterr().err


def write_task(folder: Path, name: str, questions: list[dict]) -> None:
    """A multiple-choice task of lm-eval: `questions` have `question`, `choices` and `answer`, an index."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\n'
        "doc_to_target: answer\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )


@pytest.mark.slow
def test_a_suite_of_the_harness(checkpoints, capsys, tmp_path):
    """Its two groups and five tasks, each replaced by questions of ours.

    No model was trained here, so the shortest choice is the likeliest one: what is right decides which figures are
    those of chance.
    """
    pytest.importorskip("lm_eval")

    def questions(right: list[int], choices: int = 4) -> list[dict]:
        return [
            {"question": f"cat {n}", "choices": ["hen " * (9 * c + 1) for c in range(choices)], "answer": one}
            for n, one in enumerate(right)
        ]

    for group, sizes in {"ceval-valid": (3, 9), "cmmlu": (8, 4)}.items():
        parts = [f"{group}_{letter}" for letter in "ab"]
        for part, size in zip(parts, sizes, strict=True):
            write_task(tmp_path, part, questions([0] * size if part == "cmmlu_a" else [0, 1, 2] * size)[:size])
        aggregation = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]"
        (tmp_path / f"{group}.yaml").write_text(f"group: {group}\ntask: [{', '.join(parts)}]\n{aggregation}\n")
    write_task(tmp_path, "piqa", questions([0, 1] * 6, choices=2))
    for name in ("arc_easy", "openbookqa", "hellaswag"):
        write_task(tmp_path, name, questions([0, 0, 1, 2, 3, 1, 2, 3]))
    write_task(tmp_path, "social_iqa", questions([0] * 20, choices=3))

    report, out = evaluate(
        *(capsys, tmp_path, checkpoints["dense3"], "--suite", "minimind", "--lm_eval_include_path", tmp_path)
    )
    names = [f"{name}/acc" for name in ("ceval-valid", "cmmlu", "arc_easy", "piqa", "openbookqa", "hellaswag")]
    assert list(values(report)) == [*names, "social_iqa/acc"]  # not the parts of groups
    assert values(report) == pytest.approx(
        dict(zip(names, (4 / 12, 10 / 12, 1 / 4, 1 / 2, 1 / 4, 1 / 4), strict=True)) | {"social_iqa/acc": 1}
    )
    assert values(report, "chance") == pytest.approx(
        dict.fromkeys(names, 1 / 4) | {"piqa/acc": 1 / 2, "social_iqa/acc": 1 / 3}
    )
    figures = report["figures"]["model"]
    assert [figures[name]["count"] for name in (*names, "social_iqa/acc")] == [12, 12, 8, 12, 8, 8, 20]
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures.values())
    told = [line.split(":")[0] for line in out.splitlines() if "cannot be told from chance" in line]
    assert told == [name for name in names if name != "cmmlu/acc"]


@pytest.mark.slow
def test_a_task_of_the_harness(checkpoints, capsys, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    questions = [{"question": f"{n} and 1 is", "choices": [str(n), str(n + 1)], "answer": 1} for n in range(6)]
    write_task(tmp_path, "minimind_sums", questions)
    options = ("--lm_eval", "minimind_sums", "--lm_eval_include_path", tmp_path)
    report, out = evaluate(capsys, tmp_path, checkpoints["dense3"], *options)
    figure = report["figures"]["model"]["minimind_sums/acc"]
    assert 0 <= figure["value"] <= 1 and figure["count"] == 6 and figure["low"] <= figure["value"]
    assert values(report, "chance") == {"minimind_sums/acc": 0.5}
    assert "minimind_sums/acc" in out

    asked, simple_evaluate = [], lm_eval.simple_evaluate

    def noted(**given):
        found = simple_evaluate(**given)
        asked.extend(sample["arguments"] for sample in found["samples"]["minimind_sums"])
        return found

    monkeypatch.setattr(lm_eval, "simple_evaluate", noted)
    how = ("--apply_chat_template", "--num_fewshot", 1, "--limit", 4)
    report, _ = evaluate(capsys, tmp_path, checkpoints["dense3"], *options, *how)
    assert report["figures"]["model"]["minimind_sums/acc"]["count"] == len(asked) == 4
    text = str(asked[0])
    assert text.count("<|im_start|>user") == 4  # of each of two choices: the solved example, and the question

    assert main(["eval", str(checkpoints["dense3"]), "--lm_eval", "minimind_sum", *map(str, options[2:])]) == 2
    assert "did you mean 'minimind_sums'?" in capsys.readouterr().err
