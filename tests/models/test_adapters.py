"""PEFT adapters: created from the recipes' options, and accepted wherever a checkpoint is."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from trl import ModelConfig

from minimind_trl.cli import main
from minimind_trl.errors import InputError
from minimind_trl.models import (
    CheckpointError,
    MiniMindForCausalLM,
    MiniMindForSequenceClassification,
    load_model,
    save_native,
    to_twin,
)
from minimind_trl.models.adapters import base_checkpoint, leaves_experts_out, lora_config
from minimind_trl.models.checkpoints import architecture_of, load_tokenizer_of, tokenizer_folder
from minimind_trl.rewards import RewardModel, load_rewards
from minimind_trl.run import RecipeArguments
from minimind_trl.run.loading import load_or_create_model, load_tokenizer
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.trainers.critic import make_critic
from minimind_trl.trainers.gkd_trainer import load_teacher
from tests.conftest import small_config

IDS = torch.arange(3, 15)[None]


def save_adapter(model, folder, **options):
    """Save an adapter that changes its base model's outputs; returns the outputs with the adapter."""
    torch.manual_seed(1)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | options
    adapted = get_peft_model(model, LoraConfig(**options)).eval()
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted(IDS).logits


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.fixture
def adapter(checkpoints, tmp_path):
    """An adapter of a language model, without a tokenizer."""
    expected = save_adapter(load_model(checkpoints["dense3"]), tmp_path / "adapter", task_type="CAUSAL_LM")
    return tmp_path / "adapter", expected


@pytest.fixture
def reward_adapter(checkpoints, tmp_path):
    """An adapter of a reward model on a language model's backbone, as recipes/reward.py makes it."""
    torch.manual_seed(2)
    model = load_model(checkpoints["dense3"], MiniMindForSequenceClassification, num_labels=1)
    expected = save_adapter(model, tmp_path / "reward", task_type="SEQ_CLS")
    return tmp_path / "reward", expected


# --- making an adapter ------------------------------------------------------------------------------------------------


def options(**given) -> ModelConfig:
    lora = ModelConfig(use_peft=True)
    for name, value in given.items():
        setattr(lora, name, value)
    return lora


def test_no_adapter_without_use_peft():
    assert lora_config(ModelConfig(), MiniMindForCausalLM(small_config("dense3"))) is None


@pytest.mark.parametrize("asked", [["all-linear"], "all-linear", ["ALL-LINEAR"]])
def test_all_linear_means_all_linear_layers(asked):
    model = MiniMindForCausalLM(small_config("dense3"))
    adapted = get_peft_model(model, lora_config(options(lora_target_modules=asked), model))
    names = {name.split(".")[-2] for name, _ in adapted.named_modules() if name.endswith("lora_A")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("asked", "adapted"),
    [
        (None, {"q_proj", "v_proj"}),
        (["q_proj"], {"q_proj"}),
        (["self_attn.k_proj", "up_proj"], {"k_proj", "up_proj"}),
        ([r".*\.(q|o)_proj"], {"q_proj", "o_proj"}),
    ],
)
def test_target_modules_are_suffixes_or_a_regular_expression(asked, adapted):
    model = MiniMindForCausalLM(small_config("dense3"))
    peft = get_peft_model(model, lora_config(options(lora_target_modules=asked), model))
    assert {name.split(".")[-2] for name, _ in peft.named_modules() if name.endswith("lora_A")} == adapted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_target_modules": ["q_prj"]}, "--lora_target_modules: the model has no q_prj; did you mean 'q_proj'?"),
        ({"lora_target_modules": ["q_proj", "w1"]}, "the model has no w1"),
        ({"lora_target_modules": ["al-linear"]}, "did you mean 'all-linear'?"),
        ({"lora_target_modules": ["(q"]}, "not a regular expression"),
        ({"lora_target_modules": ["q.*never"]}, "matches no module"),
        ({"lora_modules_to_save": ["lm_haed"]}, "--lora_modules_to_save: the model has no lm_haed"),
        ({"lora_target_parameters": ["experts.gate_up"]}, "--lora_target_parameters: the model has no experts.gate_up"),
        ({"lora_task_type": "SEQ_CLS"}, "--lora_task_type SEQ_CLS: this recipe trains a MiniMindForCausalLM"),
    ],
)
def test_modules_that_the_model_lacks_are_refused(given, message):
    with pytest.raises(InputError) as error:
        lora_config(options(**given), MiniMindForCausalLM(small_config("dense3")))
    assert message in str(error.value)


def test_the_task_type_is_that_of_the_model():
    assert lora_config(options(), MiniMindForCausalLM(small_config("dense3"))).task_type == "CAUSAL_LM"
    reward = MiniMindForSequenceClassification(small_config("dense3", num_labels=1))
    assert lora_config(options(), to_twin(reward)).task_type == "SEQ_CLS"
    config = lora_config(options(lora_target_modules=["all-linear"]), reward)
    assert config.task_type == "SEQ_CLS"
    trained = {name for name, part in get_peft_model(reward, config).named_parameters() if part.requires_grad}
    assert any("score.modules_to_save" in name for name in trained)


def test_experts_that_all_linear_misses_are_reported():
    model = MiniMindForCausalLM(small_config("moe3"))
    assert leaves_experts_out(lora_config(options(lora_target_modules=["all-linear"]), model), model)
    experts = {"lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "lora_dropout": 0.0}
    config = lora_config(options(lora_target_modules=["all-linear"], **experts), model)
    assert not leaves_experts_out(config, model)
    trained = {name for name, part in get_peft_model(model, config).named_parameters() if part.requires_grad}
    assert any("experts" in name for name in trained)


# --- loading an adapter -----------------------------------------------------------------------------------------------


def test_an_adapter_is_merged_into_its_base_model(adapter):
    folder, expected = adapter
    model = load_model(folder)
    assert type(model) is MiniMindForCausalLM and model.name_or_path == str(folder)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert all(part.requires_grad for part in model.parameters())  # all parameters are trainable
    apart = load_model(folder, merge=False)
    assert isinstance(apart, PeftModel)
    torch.testing.assert_close(logits(apart), expected)


@pytest.mark.parametrize("kind", ["moe3"])
def test_an_adapter_of_a_mixture_of_experts_is_merged(checkpoints, tmp_path, kind):
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    expected = save_adapter(
        load_model(checkpoints[kind]), tmp_path / "a", task_type="CAUSAL_LM", target_parameters=experts
    )
    torch.testing.assert_close(logits(load_model(tmp_path / "a")), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", ["native", "twin"])
def test_the_base_model_may_be_any_kind_of_checkpoint(checkpoints, tmp_path, base):
    model = load_model(checkpoints["dense3"])
    if base == "native":
        save_native(model, tmp_path / "base.pth", torch.float32)
    else:
        to_twin(model).save_pretrained(tmp_path / "base.pth")
    expected = save_adapter(load_model(tmp_path / "base.pth"), tmp_path / "adapter", task_type="CAUSAL_LM")
    assert base_checkpoint(tmp_path / "adapter") == str(tmp_path / "base.pth")
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter")), expected, atol=1e-5, rtol=0)


def test_the_head_count_of_a_native_base_can_be_given(tmp_path):
    model = MiniMindForCausalLM(small_config("dense2"))
    save_native(model, tmp_path / "base.pth", torch.float32)
    heads = {"num_attention_heads": 4}
    base = load_model(tmp_path / "base.pth", config_overrides=heads)
    expected = save_adapter(base, tmp_path / "adapter", task_type="CAUSAL_LM")
    loaded = load_model(tmp_path / "adapter", config_overrides=heads)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=0)
    args = RecipeArguments(data_config="x", from_weight=str(tmp_path / "adapter"), num_attention_heads=4)
    assert args.num_attention_heads == 4


def test_an_adapter_of_an_adapter_is_merged(adapter, tmp_path):
    first, _ = adapter
    expected = save_adapter(load_model(first), tmp_path / "second", task_type="CAUSAL_LM", target_modules=["up_proj"])
    torch.testing.assert_close(logits(load_model(tmp_path / "second")), expected, atol=1e-5, rtol=0)


def test_adapting_a_tied_head_leaves_the_embeddings_alone(checkpoints, tmp_path):
    model = load_model(checkpoints["dense3"])
    expected = save_adapter(model, tmp_path / "adapter", task_type="CAUSAL_LM", target_modules=["lm_head", "q_proj"])
    merged = load_model(tmp_path / "adapter")
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(load_model(tmp_path / "saved")), expected, atol=1e-5, rtol=0)


def test_an_adapter_without_a_tokenizer_uses_its_base_model_s(adapter, checkpoints):
    folder, _ = adapter
    assert tokenizer_folder(folder) == str(checkpoints["dense3"])
    assert load_tokenizer_of(folder).get_vocab() == tiny_tokenizer().get_vocab()
    tiny_tokenizer().save_pretrained(folder)
    assert tokenizer_folder(folder) == str(folder)


def test_a_relative_base_model_is_found_above_the_adapter(checkpoints, tmp_path, monkeypatch):
    """The adapter was made in the repository and is loaded from elsewhere."""
    shutil.copytree(checkpoints["dense3"], tmp_path / "runs" / "sft")
    monkeypatch.chdir(tmp_path)
    expected = save_adapter(load_model("runs/sft"), tmp_path / "runs" / "lora", task_type="CAUSAL_LM")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.testing.assert_close(logits(load_model(tmp_path / "runs" / "lora")), expected, atol=1e-5, rtol=0)


def in_cache(cache, name: str, files) -> str:
    """A Hub repository in the layout of the Hub cache."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(files, folder / "snapshots" / ("0" * 40))
    return name


def test_models_and_adapters_load_from_the_hub_cache(adapter, checkpoints, tmp_path):
    cache = {"cache_dir": str(tmp_path / "cache")}
    folder, expected = adapter
    whole = in_cache(tmp_path / "cache", "owner/whole", checkpoints["dense3"])
    torch.testing.assert_close(logits(load_model(whole, **cache)), logits(load_model(checkpoints["dense3"])))
    lora = in_cache(tmp_path / "cache", "owner/lora", folder)
    assert base_checkpoint(lora, **cache) == str(checkpoints["dense3"])
    torch.testing.assert_close(logits(load_model(lora, **cache)), expected, atol=1e-5, rtol=0)
    load_model(checkpoints["moe3"]).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shards = in_cache(tmp_path / "cache", "owner/shards", tmp_path / "shards")
    torch.testing.assert_close(logits(load_model(shards, **cache)), logits(load_model(checkpoints["moe3"])))


@pytest.mark.parametrize("name", ["owner/nothing", "runs/sft/mistyped"])
def test_an_unreachable_hub_id_is_assumed_to_have_a_tokenizer(name):
    assert tokenizer_folder(name) == name
    with pytest.raises(CheckpointError, match=f"{name}: no such "):
        load_tokenizer_of(name)
    with pytest.raises(CheckpointError, match=f"{name}: no such "):
        load_model(name)


# --- in place of a checkpoint -----------------------------------------------------------------------------------------


def test_a_recipe_starts_from_an_adapter(adapter):
    folder, expected = adapter
    args = RecipeArguments(data_config="x", from_weight=str(folder))
    model = load_or_create_model(args, load_tokenizer(args), seed=0)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert lora_config(options(), model).task_type == "CAUSAL_LM"


def test_convert_merges_an_adapter(adapter, tmp_path):
    folder, expected = adapter
    for to, destination in (("hf", "hf"), ("qwen3", "qwen3"), ("native", "a.pth")):
        assert main(["convert", str(folder), str(tmp_path / destination), "--to", to, "--dtype", "float32"]) == 0
        torch.testing.assert_close(logits(load_model(tmp_path / destination)), expected, atol=1e-5, rtol=0)
    assert (tmp_path / "hf" / "tokenizer.json").is_file() and not (tmp_path / "hf" / "adapter_config.json").exists()


def test_a_teacher_may_be_an_adapter(adapter):
    folder, expected = adapter
    teacher = load_teacher(str(folder), MiniMindForCausalLM(small_config("dense3")))
    torch.testing.assert_close(logits(teacher), expected, atol=1e-5, rtol=0)
    assert not any(part.requires_grad for part in teacher.parameters())


def test_a_reward_model_may_be_an_adapter(reward_adapter, checkpoints, tmp_path):
    folder, expected = reward_adapter
    assert architecture_of(folder) == "MiniMindForSequenceClassification"
    model = load_model(folder, MiniMindForSequenceClassification)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    [reward], _ = load_rewards([str(folder)])
    assert isinstance(reward.function, RewardModel)
    torch.testing.assert_close(logits(reward.function.model), expected, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    asked = [[{"role": "user", "content": "copy: cat"}]], [[{"role": "assistant", "content": "cat"}]]
    assert reward.function(*asked) == pytest.approx(RewardModel(str(tmp_path / "whole"))(*asked), abs=1e-5)


def test_a_critic_may_be_an_adapter(reward_adapter):
    folder, expected = reward_adapter
    critic = make_critic(MiniMindForCausalLM(small_config("dense3")), str(folder))
    with torch.no_grad():
        torch.testing.assert_close(critic(IDS).logits[:, -1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("load", [load_model, lambda name: load_teacher(name, None)])
def test_a_reward_model_s_adapter_is_refused_as_a_language_model(reward_adapter, load):
    with pytest.raises(CheckpointError, match="MiniMindForSequenceClassification, which generates no text"):
        load(str(reward_adapter[0]))


def test_a_language_model_s_adapter_is_refused_as_a_reward_model(adapter):
    folder, _ = adapter
    tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(InputError, match=r"is a MiniMindForCausalLM: train a reward model with recipes/reward\.py"):
        RewardModel(str(folder))
    with pytest.raises(InputError, match="is a MiniMindForCausalLM; give a reward model"):
        make_critic(MiniMindForCausalLM(small_config("dense3")), str(folder))


# --- damaged adapters -------------------------------------------------------------------------------------------------


def rewrite(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"base_model_name_or_path": ""}, "does not name its base model"),
        ({"base_model_name_or_path": "/no/such/model"}, "the adapter's base model: /no/such/model: no such checkpoint"),
        ({"r": 10**9}, "r is 1000000000, the weights have 4"),
        ({"r": "4"}, "r is '4', the weights have 4"),
        ({"r": 0}, "r is 0, the weights have 4"),
        ({"rank_pattern": {"q_proj": 10**9}}, "r is 1000000000, the weights have 4"),
        ({"peft_type": "NONSENSE"}, "adapter_config.json: "),
        ({"target_modules": ["q_proj"]}, "tensors do not fit its base model"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, "tensors are missing"),
        ({"target_modules": ["nothing"]}, "does not fit its base model"),
    ],
)
def test_an_adapter_config_that_does_not_fit_is_refused(adapter, changes, message):
    folder, _ = adapter
    rewrite(folder, **changes)
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "{", '"text"'])
def test_an_adapter_config_that_is_not_an_object_is_refused(adapter, text):
    folder, _ = adapter
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: (holds|not readable JSON)"):
        load_model(folder)


def test_an_adapter_that_is_its_own_base_model_is_refused(adapter, tmp_path):
    folder, _ = adapter
    shutil.copytree(folder, tmp_path / "other")
    rewrite(folder, base_model_name_or_path=str(tmp_path / "other"))
    rewrite(tmp_path / "other", base_model_name_or_path=str(folder))
    with pytest.raises(CheckpointError, match="an adapter whose base model is itself"):
        load_model(folder)


def test_an_adapter_of_another_size_is_refused(adapter, tmp_path):
    folder, _ = adapter
    MiniMindForCausalLM(small_config("dense3", hidden_size=32)).save_pretrained(tmp_path / "smaller")
    rewrite(folder, base_model_name_or_path=str(tmp_path / "smaller"))
    with pytest.raises(CheckpointError, match=f"does not fit its base model {tmp_path / 'smaller'}") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_an_adapter_with_values_that_are_not_finite_is_refused(adapter):
    folder, _ = adapter
    state = load_file(folder / "adapter_model.safetensors")
    next(iter(state.values()))[0, 0] = float("nan")
    save_file(state, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter: NaN or infinite values in 1 tensor\(s\): base_model"):
        load_model(folder)


def test_an_adapter_without_weights_is_refused(adapter):
    folder, _ = adapter
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors beside adapter_config\.json"):
        load_model(folder)


def test_a_learned_prompt_is_measured_but_not_merged(checkpoints, tmp_path):
    model = get_peft_model(
        load_model(checkpoints["dense3"]), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a PROMPT_TUNING adapter does not change the weights"):
        load_model(tmp_path)
    assert isinstance(load_model(tmp_path, merge=False), PeftModel)
