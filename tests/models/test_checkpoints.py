"""Upstream's files, conversion to and from the stock twins, and damaged or hostile files."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from minimind_trl.cli import main
from minimind_trl.models import (
    CheckpointError,
    MiniMindForCausalLM,
    MiniMindForSequenceClassification,
    from_twin,
    load_model,
    load_native,
    save_native,
    to_twin,
)
from minimind_trl.models.checkpoints import read_native_state
from minimind_trl.tokenization import inference_template, training_template
from tests.conftest import small_config

NATIVE = ["minimind2/full_sft_64", "minimind2/full_sft_64_moe", "minimind3/full_sft_64", "minimind3/full_sft_64_moe"]
TWINS = {"dense2": "llama", "dense3": "qwen3", "moe3": "qwen3_moe"}
# A MiniMind2 file does not store the head count: 4 in the small models here, 8 upstream.
HEADS = {"num_attention_heads": 4}


def assert_same_tensors(a: dict, b: dict):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


@pytest.fixture
def native(model, tmp_path):
    path = tmp_path / "full_sft_64.pth"
    save_native(model, path)
    return path


# --- native -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_upstream_files_survive_the_round_trip(shared, name, tmp_path):
    source = shared / "native" / f"{name}.pth"
    save_native(load_native(source), tmp_path / "again.pth")
    assert_same_tensors(read_native_state(source), read_native_state(tmp_path / "again.pth"))


def test_a_resume_file_holds_the_same_model(shared):
    folder = shared / "native" / "minimind3"
    resumed, plain = load_native(folder / "full_sft_64_resume.pth"), load_native(folder / "full_sft_64.pth")
    assert resumed.state_dict().keys() == plain.state_dict().keys()


def test_the_config_is_inferred_from_the_shapes(native, model, kind):
    heads = HEADS if model.config.use_qk_norm is False else {}
    loaded = load_native(native, **heads)
    skipped = {"initializer_range", "_name_or_path", "router_aux_loss_coef", "max_position_embeddings"}
    for field, value in model.config.to_dict().items():
        if field not in skipped | {"dtype", "architectures", "transformers_version"}:
            assert getattr(loaded.config, field) == value, field


def test_assumed_fields_are_printed_when_a_native_file_is_loaded(native, kind, capsys):
    load_native(native)
    printed = capsys.readouterr().out
    assert ("num_attention_heads=8" in printed) == kind.endswith("2")
    assert ("num_experts_per_tok" in printed) == kind.startswith("moe")


def test_unstored_fields_are_printed_when_a_native_file_is_written(tmp_path, capsys):
    usual = MiniMindForCausalLM(small_config("moe3"))
    save_native(usual, tmp_path / "usual.pth")
    assert capsys.readouterr().out == ""
    other = MiniMindForCausalLM(small_config("moe3", num_experts_per_tok=2, rope_theta=1e4))
    save_native(other, tmp_path / "other.pth")
    assert (
        "does not store rope_parameters={" in (printed := capsys.readouterr().out)
        and "num_experts_per_tok=2" in printed
    )


def test_a_head_count_that_does_not_fit_is_refused(tmp_path):
    save_native(MiniMindForCausalLM(small_config("dense2")), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"num_attention_heads=7 does not fit.*--num_attention_heads"):
        load_native(tmp_path / "a.pth", num_attention_heads=7)


def test_native_files_are_float16_and_load_as_float32(native):
    assert {value.dtype for value in read_native_state(native).values()} == {torch.float16}
    assert load_native(native).dtype == torch.float32
    assert load_native(native, dtype="auto").dtype == torch.float16
    assert load_native(native, dtype="bfloat16").dtype == torch.bfloat16


def test_all_damaged_tensors_are_listed(native, model):
    state = read_native_state(native)
    del state["model.layers.0.self_attn.q_proj.weight"]
    state["model.layers.1.attention_norm.weight"] = state.pop("model.layers.1.input_layernorm.weight")
    state["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(5, 64)
    torch.save(state, native)
    for config in (model.config, None):
        with pytest.raises(CheckpointError) as error:
            load_native(native, config)
        message = str(error.value)
        assert "2 missing: model.layers.0.self_attn.q_proj.weight, model.layers.1.input_layernorm.weight" in message
        assert "1 unexpected: model.layers.1.attention_norm.weight" in message
        assert "model.layers.1.self_attn.k_proj.weight is (5, 64), the config wants (32, 64)" in message


DAMAGED = {
    "query of the first layer": ("model.layers.0.self_attn.q_proj.weight", torch.zeros(8, 64)),
    "head": ("lm_head.weight", torch.zeros(5, 64)),
    "final norm": ("model.norm.weight", torch.zeros(3)),
    "a layer with a wrong number": ("model.layers.7.input_layernorm.weight", torch.ones(64)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_tensor_is_reported_without_a_config(native, what, kind):
    state = read_native_state(native)
    key, state[key] = DAMAGED[what][0], DAMAGED[what][1]
    torch.save(state, native)
    with pytest.raises(CheckpointError) as error:
        load_native(native, **({} if kind.endswith("3") else HEADS))
    assert key in str(error.value)


def test_unknown_overrides_are_refused(native):
    with pytest.raises(CheckpointError, match="not a field of MiniMindConfig: num_atention_heads"):
        load_native(native, num_atention_heads=4)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match=r"refused.*could run code.*mkdir"):
        load_native(tmp_path / "hostile.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable PyTorch checkpoint"),
        (b"just some text", "not a readable PyTorch checkpoint|refused"),
        ({1: torch.ones(2)}, "holds no state dict"),
        (b"PK\x03\x04 cut off", "not a readable PyTorch checkpoint"),
        ([1, 2], "holds no state dict"),
        ({"weights": torch.ones(2)}, "not a MiniMind checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "other.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_native(path)


def test_an_untied_head_is_not_dropped_silently(native, model):
    state = read_native_state(native)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    torch.save(state, native)
    with pytest.raises(CheckpointError, match="tie_word_embeddings=False"):
        load_native(native, model.config)
    untied = load_native(native, **HEADS) if not model.config.use_qk_norm else load_native(native)
    assert not torch.equal(untied.lm_head.weight, untied.model.embed_tokens.weight)


def test_weights_too_large_for_float16_are_refused(model, tmp_path):
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    with pytest.raises(CheckpointError, match=r"not finite as torch.float16: model.norm.weight"):
        save_native(model, tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


# --- twins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "twin"), TWINS.items(), indirect=["kind"])
@torch.no_grad()
def test_twins_compute_the_same_and_come_back_bit_for_bit(model, twin):
    ids = torch.arange(3, 15)[None]
    stock = to_twin(model)
    assert stock.config.model_type == twin and type(stock).__module__.startswith("transformers.")
    torch.testing.assert_close(stock(ids).logits, model(ids).logits, atol=1e-6, rtol=0)
    again = from_twin(stock)
    assert_same_tensors(again.state_dict(), model.state_dict())


@pytest.mark.parametrize(("kind", "twin"), TWINS.items(), indirect=["kind"])
def test_a_twin_directory_loads(model, twin, tmp_path):
    stock = to_twin(model)
    stock.generation_config.temperature = 0.3
    stock.generation_config.do_sample = True
    stock.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert_same_tensors(again.state_dict(), model.state_dict())
    assert again.generation_config.temperature == 0.3
    reward = load_model(tmp_path, MiniMindForSequenceClassification, num_labels=1, attn_implementation="eager")
    assert reward.score.out_features == 1 and reward.config._attn_implementation == "eager" and not reward.training


def test_an_incomplete_twin_directory_is_refused(tmp_path):
    stock = to_twin(MiniMindForCausalLM(small_config("dense3")))
    state = stock.state_dict()
    del state["model.layers.0.self_attn.q_proj.weight"]
    stock.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"1 missing: model.layers.0.self_attn.q_proj.weight"):
        load_model(tmp_path)


def test_minimind2_moe_has_no_twin():
    with pytest.raises(CheckpointError, match="no stock twin"):
        to_twin(MiniMindForCausalLM(small_config("moe2")))


def test_a_llama_with_unsupported_features_is_refused():
    config = LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_bias=True
    )
    with pytest.raises(CheckpointError, match="this llama has an MLP bias"):
        from_twin(LlamaForCausalLM(config))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "twin"), TWINS.items(), indirect=["kind"])
def test_convert_to_a_twin_and_back(native, tmp_path, twin, kind):
    heads = ["--num_attention_heads", "4"] if kind == "dense2" else []
    to = twin.removesuffix("_moe")
    assert main(["convert", str(native), str(tmp_path / "hf"), "--to", "hf", *heads]) == 0
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "twin"), "--to", to]) == 0
    assert main(["convert", str(tmp_path / "twin"), str(tmp_path / "back.pth"), "--to", "native"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "twin").config.model_type == twin
    assert_same_tensors(read_native_state(native), read_native_state(tmp_path / "back.pth"))


def test_convert_to_native_in_float32(checkpoints, tmp_path):
    path = tmp_path / "a.pth"
    assert main(["convert", str(checkpoints["dense3"]), str(path), "--to", "native", "--dtype", "float32"]) == 0
    assert {value.dtype for value in read_native_state(path).values()} == {torch.float32}


@pytest.mark.parametrize(("to", "template"), [("hf", training_template), ("qwen3", inference_template)])
def test_convert_copies_the_tokenizer(checkpoints, tmp_path, to, template):
    """With the markers that TRL needs, or without them for engines that support only plain Jinja."""
    assert main(["convert", str(checkpoints["dense3"]), str(tmp_path / to), "--to", to]) == 0
    assert (tmp_path / to / "tokenizer.json").is_file()
    assert (tmp_path / to / "chat_template.jinja").read_text() == template("minimind3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{missing}", "{new}", "--to", "hf"], "no such checkpoint directory"),
        (["{missing}.pth", "{new}", "--to", "hf"], "no such file"),
        (["nothing/nowhere", "{new}", "--to", "hf"], "no such folder here, and it is not in the cache"),
        (["{empty}", "{new}", "--to", "hf"], "no checkpoint: config.json is missing"),
        (["{corrupt}", "{new}", "--to", "hf"], "cannot be loaded"),
        (["{dense3}", "{new}", "--to", "hf", "--num_attention_heads", "2"], "for native .pth files only"),
        (["{dense3}", "{new}", "--to", "llama"], "use --to qwen3"),
        (["{dense3}", "{new}", "--to", "onnx"], "--to onnx: choose one of hf, native, llama, qwen3"),
        (["{moe2}", "{new}", "--to", "qwen3"], "no stock twin"),
        (["{dense3}", "{new}", "--to", "native"], "ending in .pth"),
        (["{dense3}", "{dense2}", "--to", "hf"], "exists already"),
        (["{dense3}", "{new}", "--to", "hf", "--tokenizer", "{missing}"], "no tokenizer there"),
    ],
)
def test_convert_refuses_in_one_line(checkpoints, tmp_path, capsys, arguments, message):
    paths = {**checkpoints, **{name: tmp_path / name for name in ("missing", "new", "empty", "corrupt")}}
    paths["empty"].mkdir()
    shutil.copytree(checkpoints["dense3"], paths["corrupt"])
    (paths["corrupt"] / "model.safetensors").write_bytes(b"not safetensors")
    assert main(["convert", *(argument.format(**paths) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


# --- any path ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense3"], indirect=True)
def test_a_pth_works_wherever_a_directory_does(native, model):
    assert_same_tensors(load_model(native).half().state_dict(), model.half().state_dict())
    reward = load_model(native, MiniMindForSequenceClassification, num_labels=1)
    assert torch.equal(reward.model.norm.weight.half(), model.half().model.norm.weight)


@pytest.mark.parametrize("kind", ["moe2", "moe3"], indirect=True)
def test_upstreams_own_directory_of_a_moe_loads(native, model, tmp_path):
    """The config has old keys, experts are stored separately, and the tied head is stored once."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    state = read_native_state(native)
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    config = {"model_type": "minimind", "use_moe": True, "auto_map": {"AutoConfig": "model_minimind.MiniMindConfig"}}
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        config[name] = getattr(model.config, name)
    config["num_key_value_heads"] = 2
    config |= {"n_routed_experts": 4, "n_shared_experts": 1} if model.config.n_shared_experts else {"num_experts": 4}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_model(folder)
    assert_same_tensors(loaded.half().state_dict(), model.half().state_dict())
    assert loaded.config.auto_map["AutoConfig"] == "configuration_minimind.MiniMindConfig"


def test_an_incomplete_directory_is_refused(model, tmp_path):
    state = model.state_dict()
    del state["model.norm.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"1 missing: model.norm.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize("to", ["hf", "native", "qwen3"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_convert_reports_a_full_disk_in_one_line(checkpoints, tmp_path, monkeypatch, capsys, to, number):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    target = tmp_path / ("new.pth" if to == "native" else "new")
    assert main(["convert", str(checkpoints["dense3"]), str(target), "--to", to]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {target}: cannot be written, with ") and line.endswith(os.strerror(number))
    assert not list(tmp_path.iterdir())
