"""Checkpoints that are inconsistent, damaged or hold code are refused in one line before a model is built."""

import ast
import json
import os
import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

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
from minimind_trl.models.checkpoints import load_tokenizer_of
from minimind_trl.models.stored import read_native_state
from minimind_trl.rewards import RewardModel
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.trainers.critic import make_critic
from tests.conftest import REPOSITORY, small_config


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def copied(checkpoints, tmp_path):
    """A checkpoint that a test may damage."""

    def copy(kind="dense3"):
        shutil.copytree(checkpoints[kind], tmp_path / "damaged")
        return tmp_path / "damaged"

    return copy


def rewrite_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- config.json ------------------------------------------------------------------------------------------------------

LIES = [
    ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000, the weights have 2"),
    ({"num_hidden_layers": 10**15}, "num_hidden_layers is 1000000000000000, the weights have 2"),
    ({"num_hidden_layers": 1}, "num_hidden_layers is 1, the weights have 2"),
    ({"hidden_size": 10**9}, "hidden_size is 1000000000, the weights have 64"),
    ({"intermediate_size": 10**9}, "intermediate_size is 1000000000, the weights have 128"),
    ({"vocab_size": 10**12}, "vocab_size is 1000000000000, the weights have 768"),
    ({"head_dim": 10**9}, "head_dim is 1000000000, the weights have 16"),
    (
        {"num_attention_heads": 10**8},
        "num_attention_heads x head_dim is 100000000 x 16, the weights have 64 query rows",
    ),
    ({"num_key_value_heads": 4}, "num_key_value_heads x head_dim is 4 x 16, the weights have 32 key rows"),
    ({"num_experts": 10**9}, "num_experts is 1000000000, the weights have 0"),
    ({"num_labels": 10**12}, "num_labels is 1000000000000, the weights have no score"),
    ({"hidden_size": "64"}, "hidden_size is '64', not a whole number"),
    ({"vocab_size": 768.0}, "vocab_size is 768.0, not a whole number"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True, not a whole number"),
    ({"num_hidden_layers": [2]}, "num_hidden_layers is [2], not a whole number"),
    ({"num_hidden_layers": -2}, "-2"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rope_parameters": "yarn"}, "rope"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}}, "rope_parameters: rope_theta is inf"),
    ({"dtype": "float99"}, "dtype is 'float99', not a float type such as 'float32'"),
    ({"dtype": "ones"}, "dtype is 'ones'"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"torch_dtype": 5, "dtype": None}, "dtype is 5"),
    ({"architectures": "MiniMindForCausalLM"}, "architectures is text, not a list of names"),
    ({"model_type": 5}, "model_type is 5, not a name"),
    ({"auto_map": []}, "auto_map is a list, not an object"),
]


@pytest.mark.parametrize(("changes", "message"), LIES, ids=[str(changes)[:50] for changes, _ in LIES])
def test_a_wrong_config_is_refused_before_anything_is_built(copied, monkeypatch, changes, message):
    folder = copied()
    rewrite_config(folder, **changes)
    monkeypatch.setattr(MiniMindForCausalLM, "__init__", lambda *_, **__: pytest.fail("a model is built"))
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert message in str(error.value) and "\n" not in str(error.value)
    with suppress(CheckpointError):  # transformers also reads the config to find the tokenizer's class
        load_tokenizer_of(folder)


@pytest.mark.parametrize("text", ["[]", '"text"', "12", "null", "{", "", "[" * 100_000])
def test_a_config_that_is_not_an_object_is_refused(copied, text):
    folder = copied()
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: (holds|not readable JSON)"):
        load_model(folder)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("moe3", {"num_experts": 10**9}, "num_experts is 1000000000, the weights have 4"),
        ("moe2", {"n_shared_experts": 10**7}, "n_shared_experts is 10000000, the weights have 1"),
        ("moe2", {"moe_intermediate_size": 10**9}, "moe_intermediate_size is 1000000000, the weights have 128"),
    ],
)
def test_missing_experts_are_refused(copied, kind, changes, message):
    folder = copied(kind)
    rewrite_config(folder, **changes)
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["dense2", "dense3", "moe3"], indirect=True)
def test_a_twin_with_a_wrong_config_is_refused(model, tmp_path):
    to_twin(model).save_pretrained(tmp_path)
    assert load_model(tmp_path).num_parameters() == model.num_parameters()
    rewrite_config(tmp_path, num_hidden_layers=10**12)  # stock configs build a list of that length
    with pytest.raises(CheckpointError, match="num_hidden_layers is 1000000000000, the weights have 2"):
        load_model(tmp_path)


def test_reward_models_and_critics_with_a_wrong_config_are_refused(tmp_path):
    config = small_config("dense3", num_labels=1)
    MiniMindForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    rewrite_config(tmp_path, num_hidden_layers=10**7)
    message = "num_hidden_layers is 10000000, the weights have 2"
    with pytest.raises(InputError, match=f"^reward model .*{message}"):
        RewardModel(str(tmp_path))
    with pytest.raises(InputError, match=f"^--critic_model .*{message}"):
        make_critic(MiniMindForCausalLM(small_config("dense3")), str(tmp_path))


def test_impossible_sizes_of_another_model_type_are_refused(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    config = {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], "num_hidden_layers": 10**7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"wte.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="num_hidden_layers is 10000000, the weights have room for 1"):
        RewardModel(str(tmp_path))


def test_a_reward_model_without_its_head_is_refused(tmp_path):
    reward = MiniMindForSequenceClassification(small_config("dense3", num_labels=1))
    state = {name: value for name, value in reward.state_dict().items() if name != "score.weight"}
    reward.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"1 missing: score\.weight"):
        load_model(tmp_path, MiniMindForSequenceClassification, num_labels=1)


def test_a_reward_model_is_refused_as_a_language_model(tmp_path):
    MiniMindForSequenceClassification(small_config("dense3", num_labels=1)).save_pretrained(tmp_path / "reward")
    with pytest.raises(CheckpointError, match="MiniMindForSequenceClassification, which generates no text"):
        load_model(tmp_path / "reward")
    assert main(["convert", str(tmp_path / "reward"), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert not (tmp_path / "out").exists()


def test_remote_code_is_neither_run_nor_asked_about(copied, monkeypatch):
    folder = copied()
    rewrite_config(folder, model_type="foreign", auto_map={"AutoConfig": "foreign.Config"})
    (folder / "foreign.py").write_text("raise SystemExit('code was run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    with pytest.raises(CheckpointError, match="contains custom code") as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert load_tokenizer_of(folder).get_vocab() == tiny_tokenizer().get_vocab()


def test_every_auto_class_call_sets_trust_remote_code():
    """Without it, transformers asks on the terminal. The argument is given by name or in passed-on options."""
    silent = []
    for folder in ("minimind_trl", "recipes", "benchmarks"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                    continue
                is_auto = isinstance(call.func.value, ast.Name) and call.func.value.id.startswith("Auto")
                if call.func.attr == "from_pretrained" and is_auto:
                    given = {keyword.arg for keyword in call.keywords} & {"trust_remote_code", None}
                    silent += [] if given else [f"{file}:{call.lineno}"]
    assert not silent


# --- files with code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense3", "moe3"])
def test_a_pickled_checkpoint_with_code_is_refused_in_one_line(copied, tmp_path, capsys, kind):
    folder = copied(kind)
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(64), "x": Hostile(tmp_path / "run")}, folder / "pytorch_model.bin")
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "hf"]) == 2
    error = capsys.readouterr().err
    assert "could run code" in error and "mkdir" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_pickled_checkpoint_of_tensors_loads(copied, checkpoints):
    folder = copied()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    expected = MiniMindForCausalLM.from_pretrained(checkpoints["dense3"]).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_model(folder).state_dict().items())


@pytest.mark.parametrize("name", ["native.pth", "damaged/pytorch_model.bin"])
def test_a_tensor_that_claims_more_than_is_stored_is_refused(copied, tmp_path, name):
    """One stored value with the shape of a matrix of ten million by ten million."""
    folder = copied()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["model.embed_tokens.weight"] = torch.zeros(1, 1).expand(10**7, 10**7)
    torch.save(state, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight claims shape \(10000000, 10000000\)"):
        load_model(tmp_path / name if name.endswith(".pth") else folder)


def test_a_native_file_of_one_layer_with_a_huge_number_is_refused(tmp_path):
    save_native(MiniMindForCausalLM(small_config("dense3", num_hidden_layers=1)), tmp_path / "a.pth")
    state = {
        key.replace("layers.0.", "layers.99999999."): value
        for key, value in read_native_state(tmp_path / "a.pth").items()
    }
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"unexpected: model\.layers\.99999999\."):
        load_model(tmp_path / "b.pth")


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["dense3", "moe3"])
def test_every_loader_refuses_weights_that_are_not_finite(copied, tmp_path, capsys, monkeypatch, kind, bad):
    folder = copied(kind)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.self_attn.q_proj.weight"][3, 5] = bad
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    message = "NaN or infinite values in 1 tensor(s): model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert message in str(error.value)
    capsys.readouterr()  # transformers' progress
    monkeypatch.setattr("minimind_trl.evaluation.harness.check_installed", lambda: None)
    for command in (
        ["convert", str(folder), str(tmp_path / "out"), "--to", "hf"],
        ["eval", str(folder), "--lm_eval", "x"],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    if kind == "dense3":
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        torch.save(state, tmp_path / "native.pth")
        with pytest.raises(CheckpointError) as error:
            load_model(tmp_path / "native.pth")
        assert message in str(error.value)


def test_reward_models_and_critics_that_are_not_finite_are_refused(tmp_path):
    reward = MiniMindForSequenceClassification(small_config("dense3", num_labels=1))
    with torch.no_grad():
        reward.score.weight[0, 0] = float("nan")
    reward.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for load in (RewardModel, lambda name: make_critic(MiniMindForCausalLM(small_config("dense3")), name)):
        with pytest.raises(InputError, match=r"NaN or infinite values in 1 tensor\(s\): score\.weight"):
            load(str(tmp_path))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("kind", ["dense3", "moe3"], indirect=True)
def test_a_native_file_with_the_prefixes_of_wrappers_loads(model, tmp_path, prefix):
    save_native(model, tmp_path / "plain.pth")
    plain = read_native_state(tmp_path / "plain.pth")
    torch.save({f"{prefix}{key}": value for key, value in plain.items()}, tmp_path / "wrapped.pth")
    torch.save(
        {"model": {f"{prefix}{key}": value for key, value in plain.items()}, "epoch": 1}, tmp_path / "resume.pth"
    )
    for name in ("wrapped.pth", "resume.pth"):
        loaded = load_model(tmp_path / name).state_dict()
        expected = load_model(tmp_path / "plain.pth").state_dict()
        assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in loaded)


def test_compiled_layers_load_and_duplicate_tensors_are_refused(tmp_path):
    save_native(MiniMindForCausalLM(small_config("dense3")), tmp_path / "plain.pth")
    plain = read_native_state(tmp_path / "plain.pth")
    torch.save({key.replace("layers.0.", "layers.0._orig_mod."): plain[key] for key in plain}, tmp_path / "a.pth")
    assert read_native_state(tmp_path / "a.pth").keys() == plain.keys()
    torch.save(plain | {"module.model.norm.weight": plain["model.norm.weight"]}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"has model\.norm\.weight twice"):
        read_native_state(tmp_path / "b.pth")


# --- the tokenizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["its own", "another"])
def test_convert_refuses_a_tokenizer_with_more_tokens_than_the_model(tmp_path, capsys, source):
    size = len(tiny_tokenizer())
    MiniMindForCausalLM(small_config("dense3", vocab_size=size - 1)).save_pretrained(tmp_path / "small")
    tiny_tokenizer().save_pretrained(tmp_path / ("small" if source == "its own" else "tokenizer"))
    options = [] if source == "its own" else ["--tokenizer", str(tmp_path / "tokenizer")]
    assert main(["convert", str(tmp_path / "small"), str(tmp_path / "out"), "--to", "hf", *options]) == 2
    assert f"the tokenizer has {size} tokens, {tmp_path / 'small'} only {size - 1}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_id_beyond_the_number_of_tokens_is_detected(tmp_path):
    """One id is far above the others, as in a vocabulary with a gap."""
    tokenizer = tiny_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] |= {"far": 5000}
    MiniMindForCausalLM(small_config("dense3")).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(content))
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "hf"]) == 2


def test_convert_refuses_a_tokenizer_that_it_would_not_write(checkpoints, tmp_path, capsys):
    options = ["--to", "native", "--tokenizer", str(checkpoints["dense3"])]
    assert main(["convert", str(checkpoints["dense3"]), str(tmp_path / "a.pth"), *options]) == 2
    assert "no tokenizer is written beside a .pth" in capsys.readouterr().err
