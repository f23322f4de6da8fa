"""`minimind-trl convert --to gguf` and `--to vllm`: what is written, what the certificate says, and what is refused."""

import json
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoTokenizer

from minimind_trl.cli import main
from minimind_trl.evaluation import certificates
from minimind_trl.evaluation.certificate_texts import certificate_texts
from minimind_trl.models import gguf_file, load_model
from minimind_trl.tokenization import tiny_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


@pytest.fixture(autouse=True)
def few_texts(monkeypatch, request):
    """A certificate of 10,000 texts takes some 20 seconds."""
    if "slow" not in request.keywords:
        for name, count in {"TEXTS": 300, "PROMPTS": 6, "MAX_NEW_TOKENS": 8}.items():
            monkeypatch.setattr(certificates, name, count)
        monkeypatch.setattr("minimind_trl.commands.gguf_export.PERPLEXITY_PROMPTS", 2)


def comparisons(folder) -> dict[str, dict]:
    certificate = json.loads((folder / "certificate.json").read_text())
    return {entry["what"]: entry for entry in certificate["comparisons"]}


# --- GGUF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "outtype"), [("dense2", "f32"), ("dense3", "q8_0"), ("moe3", "bf16")])
def test_llama_cpp_computes_the_same(checkpoints, tmp_path, capsys, kind, outtype):
    folder = tmp_path / "out"
    assert main(["convert", str(checkpoints[kind]), str(folder), "--to", "gguf", "--outtype", outtype]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["Modelfile", "certificate.json", f"out-{outtype}.gguf"]
    found = comparisons(folder)
    for what in (
        *("token ids, control tokens read as such", "token ids, control tokens read as text"),
        *("prompts of the chat template", "greedy answers in f32", "log-probabilities in f32"),
    ):
        assert 0 < found[what]["count"] == found[what]["equal"], what
    assert found["log-probabilities in f32"]["max_difference"] < 1e-4
    rise = found[f"log-probabilities in {outtype}"]["perplexity_rise"]
    assert (abs(rise) < 1e-6) == (outtype == "f32")
    out = capsys.readouterr().out
    assert "token ids, control tokens read as such: 300 of 300 equal" in out and f"wrote {folder}" in out


def test_what_the_file_says_about_itself(checkpoints, tmp_path):
    folder = tmp_path / "mine"
    options = ["--to", "gguf", "--outtype", "q8_0", "--no_certificate"]
    assert main(["convert", str(checkpoints["dense3"]), str(folder), *options]) == 0
    reader = gguf.GGUFReader(folder / "mine-q8_0.gguf")
    fields = {name: reader.fields[name].contents() for name in reader.fields}
    assert fields["general.architecture"] == "qwen3" and fields["general.name"] == "mine"
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.chat_template"] == tiny_tokenizer_of_engines().chat_template
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == "Q8_0" and types["blk.0.attn_norm.weight"] == "F32"
    assert "output.weight" not in types  # tied to the embeddings


def tiny_tokenizer_of_engines():
    from minimind_trl.tokenization import prepared_for_engines

    return prepared_for_engines(tiny_tokenizer())


def test_the_modelfile_of_ollama_writes_the_same_turns(checkpoints, tmp_path):
    main(["convert", str(checkpoints["dense3"]), str(tmp_path / "m"), "--to", "gguf", "--no_certificate"])
    assert (tmp_path / "m" / "Modelfile").read_text() == (
        "FROM ./m-f16.gguf\n"
        'TEMPLATE """{{ range .Messages }}<|im_start|>{{ .Role }}\n'
        '{{ if eq .Role "assistant" }}<think>\n\n</think>\n\n{{ end }}{{ .Content }}<|im_end|>\n'
        "{{ end }}<|im_start|>assistant\n<think>\n\n</think>\n\n"
        '"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "<|endoftext|>"\n'
    )


@pytest.mark.parametrize(
    ("kind", "name", "wrong", "message"),
    [
        ("dense3", "PRE_TOKENIZER", "qwen2", " of 300 equal; "),
        ("dense2", "_interleaved", lambda weight, heads: weight, "greedy answers in f32: "),
        ("moe3", "_ARCHITECTURES", {"qwen3_moe": "QWEN3"}, "llama.cpp has no name for the tensor"),
        ("dense3", "PRE_TOKENIZER", "no-such", "llama.cpp cannot load it"),
    ],
)
def test_a_wrong_export_is_not_written(checkpoints, tmp_path, capsys, monkeypatch, kind, name, wrong, message):
    monkeypatch.setattr(gguf_file, name, wrong)
    code = main(["convert", str(checkpoints[kind]), str(tmp_path / "out"), "--to", "gguf", "--outtype", "f32"])
    error = capsys.readouterr().err
    assert message in error and code == (2 if "no name" in message else 1)
    assert list(tmp_path.iterdir()) == []


def test_quantization_that_costs_too_much_is_refused(checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(certificates.MAX_PERPLEXITY_RISE, "q8_0", 1e-9)
    assert (
        main(["convert", str(checkpoints["dense3"]), str(tmp_path / "out"), "--to", "gguf", "--outtype", "q8_0"]) == 1
    )
    assert "the perplexity changes by" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("moe2", ["--to", "gguf"], "no stock twin"),
        ("dense3", ["--to", "gguf", "--outtype", "q4_0"], "--outtype q4_0: choose one of f32, f16, bf16, q8_0"),
        ("dense3", ["--to", "gguf", "--dtype", "float16"], "for --to gguf give --outtype"),
        ("dense3", ["--to", "qwen3", "--outtype", "f16"], "this is for --to gguf"),
        ("dense3", ["--to", "hf", "--no_certificate"], "--to hf has no certificate"),
        ("native", ["--to", "vllm"], "brings no tokenizer, which --to vllm needs: give --tokenizer DIR"),
    ],
)
def test_exports_refuse_in_one_line(checkpoints, tmp_path, capsys, source, options, message):
    paths = {**checkpoints, "native": tmp_path / "full_sft_64.pth"}
    if source == "native":
        main(["convert", str(checkpoints["dense3"]), str(paths["native"]), "--to", "native"])
    capsys.readouterr()
    assert main(["convert", str(paths[source]), str(tmp_path / "new"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_without_llama_cpp_a_file_is_written_only_unchecked(checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    command = ["convert", str(checkpoints["dense3"]), str(tmp_path / "out"), "--to", "gguf"]
    assert main(command) == 2
    assert "pip install 'minimind-trl[gguf]', or give --no_certificate" in capsys.readouterr().err
    assert main([*command, "--no_certificate"]) == 0
    assert "not compared with the source" in capsys.readouterr().out
    assert not (tmp_path / "out" / "certificate.json").exists()
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main([*command[:2], str(tmp_path / "other"), "--to", "gguf"]) == 2
    assert "--to gguf needs the package gguf" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["minimind2", "minimind3"])
def test_the_whole_certificate_with_upstream_s_tokenizer(shared, tmp_path, monkeypatch, generation):
    """Upstream's small weights have a vocabulary of 160, so the embeddings of the other tokens are random here."""
    if generation == "minimind2":  # a request for each token takes time, and MiniMind-3 has all 20 prompts
        monkeypatch.setattr("minimind_trl.commands.gguf_export.PERPLEXITY_PROMPTS", 4)
    model = load_model(shared / "native" / generation / "full_sft_64.pth")
    torch.manual_seed(0)
    model.resize_token_embeddings(6400, mean_resizing=False)
    model.save_pretrained(tmp_path / "model")
    options = ["--to", "gguf", "--outtype", "q8_0", "--tokenizer", str(shared / "tokenizers" / generation)]
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out"), *options]) == 0
    found = comparisons(tmp_path / "out")
    assert found["token ids, control tokens read as such"]["equal"] == 10_000
    assert found["greedy answers in f32"]["equal"] == 200


# --- vLLM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense2", "moe3"])
def test_the_folder_for_vllm_has_the_fields_of_transformers_4(checkpoints, tmp_path, capsys, kind):
    folder = tmp_path / "out"
    assert main(["convert", str(checkpoints[kind]), str(folder), "--to", "vllm"]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 1e6 and config["rope_scaling"] is None and config["torch_dtype"] == "float32"
    assert config.get("num_experts") == (4 if kind == "moe3" else None)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in tokenizer
    assert "<|vision_start|>" in tokenizer["additional_special_tokens"]
    assert comparisons(folder)["prompts by their logits"] == {
        **{"what": "prompts by their logits", "count": 6, "equal": 6},
        "max_difference": 0.0,
    }
    assert "prompts by their logits: 6 of 6 equal" in capsys.readouterr().out


def test_yarn_and_an_adapter_reach_the_folder_for_vllm(tmp_path):
    from minimind_trl.models import MiniMindForCausalLM
    from tests.conftest import small_config

    base = MiniMindForCausalLM(small_config("dense3", inference_rope_scaling=True))
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base.name_or_path = base.config.name_or_path = str(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    assert main(["convert", str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "vllm"]) == 0
    written, merged = load_model(tmp_path / "out"), load_model(tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(written.state_dict()[name], merged.state_dict()[name])
    assert not torch.equal(written.state_dict()[name], load_model(tmp_path / "base").state_dict()[name])
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_scaling["rope_type"] == "yarn"


def test_saved_files_that_differ_are_not_kept(checkpoints, tmp_path, capsys, monkeypatch):
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_start|>"}
    monkeypatch.setattr("minimind_trl.commands.vllm_export._older_fields", lambda twin: {"rms_norm_eps": 0.5, **fields})
    assert main(["convert", str(checkpoints["dense3"]), str(tmp_path / "out"), "--to", "vllm"]) == 1
    assert "prompts by their logits: 0 of 6 equal" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_the_same_in_every_process_and_of_all_kinds():
    tokenizer = tiny_tokenizer()
    texts = list(certificate_texts(tokenizer, 2000))
    assert texts[:50] == list(certificate_texts(tokenizer, 50))
    joined = "".join(texts)
    for part in ("天空", "é", "👩‍👩‍👧‍👦", "<|im_end|>", "<think>", "\r\n", "\u3000", "def add", "한국어", "  "):
        assert part in joined, part
    assert "<|im_end|>" in AutoTokenizer.from_pretrained(tokenizer.name_or_path).all_special_tokens
