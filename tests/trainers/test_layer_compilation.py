"""Compiled layers give the losses and weights of plain ones, in checkpoints with the same names."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import Trainer, set_seed
from trl import DPOConfig, RewardConfig, SFTConfig

from minimind_trl.errors import InputError
from minimind_trl.models import MiniMindForCausalLM, MiniMindForSequenceClassification
from minimind_trl.models.cpu_kernels import use_cpu_kernels
from minimind_trl.tokenization import tiny_tokenizer, with_training_template
from minimind_trl.trainers import MiniMindDPOTrainer, MiniMindRewardTrainer, MiniMindSFTTrainer
from tests.conftest import small_config
from tests.trainers.online import online, weights

TRACED = "eager"  # a backend that compiles nothing
SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def chats(count: int) -> Dataset:
    said = [("user", "count"), ("assistant", " ".join(["one two three four"] * 5))]
    return Dataset.from_list(
        [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in said]} for n in range(count)]
    )


def sft(folder, kind="dense3", steps=4, resume=False, packing=True, **options):
    set_seed(0)
    tokenizer = with_training_template(tiny_tokenizer())
    trainer = MiniMindSFTTrainer(
        model=use_cpu_kernels(MiniMindForCausalLM(small_config(kind, vocab_size=len(tokenizer), **SIZES))),
        args=SFTConfig(
            str(folder),
            packing=packing,
            max_length=96,
            per_device_train_batch_size=4,
            max_steps=steps,
            logging_steps=1,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            lr_scheduler_type="constant",
            **options,
        ),
        train_dataset=chats(24),
        eval_dataset=chats(4),
        processing_class=tokenizer,
    )
    trainer.evaluate()
    trainer.train(resume_from_checkpoint=resume)
    figures = [log.get("loss", log.get("eval_loss")) for log in trainer.state.log_history if "train_runtime" not in log]
    return figures, load_file(folder / f"checkpoint-{steps}" / "model.safetensors")


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], atol=1e-4, rtol=0, msg=name)


def test_losses_and_weights_are_those_of_plain_layers(tmp_path):
    plain = sft(tmp_path / "plain")
    assert_same(sft(tmp_path / "compiled", torch_compile_backend=TRACED), plain)
    assert counters["stats"]["unique_graphs"] <= 2  # for all layers, and none for evaluation


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"packing": False}], ids=str)
def test_checkpointed_layers_and_padded_rows_are_compiled_too(tmp_path, options):
    plain = sft(tmp_path / "plain", **options)
    assert_same(sft(tmp_path / "compiled", **options, torch_compile_backend=TRACED), plain)
    assert 0 < counters["stats"]["unique_graphs"] <= 3


@pytest.mark.slow
def test_code_of_the_inductor_gives_the_same_and_a_run_resumes(tmp_path):
    plain = sft(tmp_path / "plain")
    sft(tmp_path / "resumed", steps=2, torch_compile=True)
    figures, weights = sft(tmp_path / "resumed", resume=True, torch_compile=True)
    assert_same((figures[-3:], weights), (plain[0][-3:], plain[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer_class", "config_class", "model_class"),
    [
        (MiniMindDPOTrainer, DPOConfig, MiniMindForCausalLM),
        (MiniMindRewardTrainer, RewardConfig, MiniMindForSequenceClassification),
    ],
)
def test_trainers_on_pairs_compile_too(tmp_path, trainer_class, config_class, model_class):
    prompt = [{"role": "user", "content": "count"}]
    sides = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "1 2"), ("rejected", "2 1"))}
    rows, losses = Dataset.from_list([{"prompt": prompt, **sides}] * 8), []
    for backend in (None, TRACED):
        set_seed(0)
        tokenizer = tiny_tokenizer()
        config = small_config("dense3", vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **SIZES)
        model = use_cpu_kernels(model_class(config))
        options = {"ref_model": use_cpu_kernels(model_class(config))} if trainer_class is MiniMindDPOTrainer else {}
        settings = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"}
        settings |= {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-3}
        trainer = trainer_class(
            model=model,
            args=config_class(str(tmp_path), torch_compile_backend=backend, **settings),
            train_dataset=rows,
            processing_class=tokenizer,
            **options,
        )
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert counters["stats"]["unique_graphs"] >= 1


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        pytest.param("grpo", {"beta": 0.1}, marks=pytest.mark.slow),
        ("ppo", {"kl_coef": 0.1}),
        pytest.param("spo", {"beta": 0.1}, marks=pytest.mark.slow),
    ],
)
def test_updates_of_online_trainers_are_compiled_and_their_rollouts_are_not(tmp_path, method, reference):
    options = {**reference, "eval_strategy": "steps", "eval_steps": 2}
    plain = online(method, tmp_path / "plain", **options)
    plain.train()
    compiled = online(method, tmp_path / "compiled", torch_compile_backend=TRACED, **options)
    compiled.evaluate()
    compiled.complete(compiled.model, [[20, 21, 22], [30, 31]])
    assert not counters["stats"]
    set_seed(compiled.args.seed)
    compiled.train()
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], tensor, atol=1e-4, rtol=0, msg=name)
    assert counters["stats"]["unique_graphs"] >= 2  # with gradients, and without for log-probabilities and values


def test_online_trainers_do_not_compile_under_fsdp(tmp_path, monkeypatch):
    make = Trainer.create_accelerator_and_postprocess

    def sharded(self):
        make(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(InputError, match="--torch_compile under FSDP and DeepSpeed"):
        online("grpo", tmp_path, torch_compile_backend=TRACED)
