"""Evaluation: graded answers and held-out figures."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from minimind_trl.errors import InputError
from minimind_trl.evaluation import exact_match_by_skill, held_out_figures, position_score
from minimind_trl.evaluation.held_out import token_byte_lengths, tokenize_rows
from minimind_trl.models import MiniMindForCausalLM, to_twin
from minimind_trl.tokenization import tiny_tokenizer, with_training_template
from tests.conftest import small_config

TEXTS = [{"text": f"words: cat dog {'hen ' * n}. {n} Ä 猫", "source": "ab"[n % 2]} for n in range(7)]
TOOL = '[{"type": "function", "function": {"name": "add", "parameters": {}}}]'
CHATS = [
    {
        "messages": [
            {"role": "user", "content": "cat " * (n + 1)},
            {"role": "assistant", "content": f"<think>\nhm\n</think>\n\n{n}"},
            {"role": "user", "content": "more?"},
            {"role": "assistant", "content": str(n + 1)},
        ],
        "tools": TOOL if n % 2 else None,
        "source": "odd" if n % 2 else "even",
    }
    for n in range(5)
]
OPTIONS = {"max_length": 400, "batch_size": 3}


@pytest.mark.parametrize(
    ("completion", "score"),
    [("a b c d", 1.0), (" a  b c d\n", 1.0), ("a c b d", 0.5), ("a b", 0.5), ("a b c d e", 0.8), ("", 0.0)],
)
def test_position_score(completion, score):
    assert position_score(completion, "a b c d") == score


def test_scores_are_kept_per_skill(monkeypatch):
    rows = [
        {
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}],
            "answer": answer,
            "skill": skill,
        }
        for skill, answer in (("copy", "cat dog"), ("copy", "hen"), ("sort", "1 2"))
    ]
    monkeypatch.setattr("minimind_trl.evaluation.answers.generate_answers", lambda *_, **__: ["cat dog", "fox", "1 3"])
    scores = exact_match_by_skill(None, tiny_tokenizer(), rows)
    assert scores["copy"] == {"exact_match": 0.5, "position_score": 0.5, "prompts": 2}
    assert scores["sort"] == {"exact_match": 0.0, "position_score": 0.5, "prompts": 1}
    assert list(scores)[-1] == "all" and scores["all"]["prompts"] == 3


def test_answers_do_not_depend_on_the_batch():
    """With left padding, a prompt gets the same answer alone and beside a longer one."""
    from minimind_trl.evaluation import generate_answers

    model = MiniMindForCausalLM(small_config("dense3"))
    prompts = [[{"role": "user", "content": text}] for text in ("copy: cat", "reverse: red dog cat hen fox pie")]
    together = generate_answers(model, tiny_tokenizer(), prompts, 6)
    assert together == [generate_answers(model, tiny_tokenizer(), [prompt], 6)[0] for prompt in prompts]


# --- held-out figures -------------------------------------------------------------------------------------------------


def small_model(kind="dense3") -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(small_config(kind))


def brute_force(model, rows: list[tuple[list[int], list[bool]]]) -> dict[str, float]:
    """The same figures computed token by token for each row alone, without batches and padding."""
    tokenizer = tiny_tokenizer()
    nll = text_nll = tokens = correct = size = 0
    for ids, wanted in rows:
        with torch.no_grad():
            rows_log_probs = model.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for at in range(1, len(ids)):
            if not wanted[at]:
                continue
            log_probs = rows_log_probs[at - 1]
            tokens += 1
            nll -= log_probs[ids[at]].item()
            correct += int(log_probs.argmax().item() == ids[at])
            if ids[at] not in tokenizer.all_special_ids:
                text_nll -= log_probs[ids[at]].item()
                token = tokenizer.convert_ids_to_tokens(ids[at])
                size += len(token)  # byte-level: one character per byte; added tokens are ASCII
    return {
        "eval_loss": nll / tokens,
        "eval_perplexity": math.exp(nll / tokens),
        "eval_bits_per_byte": text_nll / math.log(2) / size,
        "eval_token_accuracy": correct / tokens,
        "eval_num_tokens": tokens,
    }


@pytest.mark.parametrize(("rows", "assistant_only"), [(TEXTS, False), (CHATS, False), (CHATS, True)])
def test_figures_equal_those_of_brute_force(model, rows, assistant_only):
    figures = held_out_figures(model, tiny_tokenizer(), rows, assistant_only=assistant_only, **OPTIONS)
    tokenized = tokenize_rows(rows, tiny_tokenizer(), 400, assistant_only)
    expected = brute_force(model, tokenized)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    for source in {row["source"] for row in rows}:
        own = [one for one, row in zip(tokenized, rows, strict=True) if row["source"] == source]
        assert figures[f"eval_loss_{source}"] == pytest.approx(brute_force(model, own)["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(("rows", "assistant_only"), [(TEXTS, False), (CHATS, False), (CHATS, True)])
@pytest.mark.parametrize("kind", ["dense3", "moe3"])
def test_tokens_and_loss_equal_those_of_trl(kind, rows, assistant_only, tmp_path):
    """Also for a model with the trainer's fused head, and after training."""
    tokenizer, model = tiny_tokenizer(), small_model(kind)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_length=400,
            assistant_only_loss=assistant_only,
            max_steps=1,
            per_device_eval_batch_size=8,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=with_training_template(tokenizer) if assistant_only else tokenizer,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
    )
    tokenized = tokenize_rows(rows, tokenizer, 400, assistant_only)
    for row, (ids, wanted) in zip(trainer.eval_dataset, tokenized, strict=True):
        assert row["input_ids"] == ids
        assert row["labels"] == [token if bit else -100 for token, bit in zip(ids, wanted, strict=True)]
    for _ in range(2):
        theirs = trainer.evaluate()
        ours = held_out_figures(model, tokenizer, rows, assistant_only=assistant_only, **OPTIONS)
        assert ours["eval_token_accuracy"] == pytest.approx(theirs["eval_mean_token_accuracy"])
        if kind == "dense3":  # TRL's loss includes the auxiliary loss of a mixture of experts
            assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], abs=1e-5)
        trainer.train()


def test_twins_and_adapters_are_measured_alike():
    model, tokenizer = small_model(), tiny_tokenizer()
    figures = held_out_figures(model, tokenizer, TEXTS, **OPTIONS)
    assert held_out_figures(to_twin(model), tokenizer, TEXTS, **OPTIONS) == pytest.approx(figures, rel=1e-5)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))  # a new adapter changes nothing
    assert held_out_figures(adapted, tokenizer, TEXTS, **OPTIONS) == pytest.approx(figures, rel=1e-5)


def test_evaluating_changes_nothing():
    model, tokenizer = small_model(), tiny_tokenizer()
    model.train()
    model.model.norm.eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    held_out_figures(model, tokenizer, CHATS, assistant_only=True, **OPTIONS)
    with pytest.raises(InputError, match="no held-out row has a token to predict within max_length=2"):
        held_out_figures(model, tokenizer, CHATS, assistant_only=True, max_length=2, batch_size=2)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("size", [2, 3, 8])  # five rows: one case has more processes than rows
def test_processes_share_the_rows_and_get_the_same_figures(size):
    model, tokenizer = small_model(), tiny_tokenizer()
    passes, parts = [0] * size, []
    options = {**OPTIONS, "batch_size": 1, "assistant_only": True}

    def process(rank, reduce):
        hook = model.register_forward_pre_hook(lambda *_: passes.__setitem__(rank, passes[rank] + 1))
        accelerator = SimpleNamespace(process_index=rank, num_processes=size, device=torch.device("cpu"), reduce=reduce)
        try:
            return held_out_figures(model, tokenizer, CHATS, accelerator=accelerator, **options)
        finally:
            hook.remove()

    for rank in range(size):
        with pytest.raises(StopIteration):
            process(rank, lambda tensor, reduction: (parts.append(tensor), next(iter(()))))
    assert len(set(passes)) == 1, "a sharded model would wait for the other process forever"
    figures = process(0, lambda tensor, reduction: {"sum": sum(parts)}[reduction])
    assert figures == pytest.approx(held_out_figures(model, tokenizer, CHATS, **options), rel=1e-5)


def test_max_batches_takes_the_first_rows():
    model, tokenizer = small_model(), tiny_tokenizer()
    figures = held_out_figures(model, tokenizer, Dataset.from_list(TEXTS), max_batches=2, **OPTIONS)
    assert figures == pytest.approx(held_out_figures(model, tokenizer, TEXTS[:6], **OPTIONS))
    assert figures["eval_num_rows"] == 6
    stream = Dataset.from_list(TEXTS).to_iterable_dataset()
    assert held_out_figures(model, tokenizer, stream, max_batches=2, **OPTIONS) == pytest.approx(figures)


def test_rows_without_a_target_are_counted():
    prompt = [{"role": "user", "content": "cat " * 400}, {"role": "assistant", "content": "1"}]
    rows = [*CHATS, {"messages": prompt, "tools": None, "source": "long"}]
    figures = held_out_figures(small_model(), tiny_tokenizer(), rows, assistant_only=True, **OPTIONS)
    alone = held_out_figures(small_model(), tiny_tokenizer(), CHATS, assistant_only=True, **OPTIONS)
    assert "eval_rows_without_target" not in alone
    assert figures == pytest.approx(alone | {"eval_rows_without_target": 1}, rel=1e-5)


def test_bfloat16_figures_are_close():
    figures, rough = (
        held_out_figures(small_model(), tiny_tokenizer(), TEXTS, bf16=bf16, **OPTIONS)["eval_loss"]
        for bf16 in (False, True)
    )
    assert figures != rough and rough == pytest.approx(figures, rel=0.02)


def test_bytes_of_tokens():
    """Text without special tokens has as many bytes as its tokens together."""
    tokenizer = tiny_tokenizer()
    lengths = token_byte_lengths(tokenizer)
    for text in ("words: cat", "Ä 猫 🐈\n", "<think>\nhm</think>"):
        assert lengths[tokenizer(text)["input_ids"]].sum() == len(text.encode())
    assert not lengths[tokenizer.all_special_ids].any()
    assert lengths.shape == (len(tokenizer),)


def test_no_bits_per_byte_without_a_byte_level_vocabulary():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<s>": 0, "▁cat": 1, "▁dog": 2}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>")
    assert not token_byte_lengths(tokenizer).any()
    figures = held_out_figures(small_model(), tokenizer, [{"text": "cat dog"}], **OPTIONS)
    assert "eval_bits_per_byte" not in figures and figures["eval_num_tokens"] > 0
