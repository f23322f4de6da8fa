"""Every file of accelerate_configs, read by accelerate's own launcher."""

import argparse
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.run import PretrainRecipeConfig
from tests.conftest import REPOSITORY, small_config

FOLDER = REPOSITORY / "accelerate_configs"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("**/*.yaml"))
ZERO = [name for name in FILES if "zero" in name]
# What the launcher must be told on the command line, because nobody else knows it.
COUNTED = {"cpu_ddp.yaml": ["--num_processes", "2"], "multi_node.yaml": ["--num_processes", "8"]}


def launched(name: str) -> argparse.Namespace:
    options = ["--config_file", str(FOLDER / name), *COUNTED.get(name, []), "recipe.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    return args


def deepspeed_environment(name: str) -> dict[str, str]:
    args = launched(name)
    args.deepspeed_fields_from_accelerate_config = ",".join(load_config_from_file(str(FOLDER / name)).deepspeed_config)
    _, environment = prepare_deepspeed_cmd_env(args)
    return {key: value for key, value in environment.items() if key.startswith("ACCELERATE_")}


def test_all_are_there():
    wanted = {"cpu", "cpu_ddp", "single_gpu", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload", "multi_node"}
    wanted |= {f"cpu/{name}" for name in ("ddp", "zero1", "zero2", "zero3")}
    assert {name.removesuffix(".yaml") for name in FILES} == wanted


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_is_and_the_launcher_takes_it(name):
    comment = "".join(line for line in (FOLDER / name).read_text().splitlines() if line.startswith("#"))
    assert "Needs:" in comment and "Tried:" in comment
    args = launched(name)
    alone = load_config_from_file(str(FOLDER / name)).distributed_type == DistributedType.NO
    assert args.mixed_precision == "no"  # which leaves it to the recipe
    assert alone == (args.num_processes == 1)
    if name.startswith("cpu/"):
        assert args.use_cpu and args.num_processes == 2
    elif not alone and name not in COUNTED:
        assert args.num_processes == "gpu"


def test_torchrun_knows_the_word_for_all_gpus(monkeypatch):
    from torch.distributed.run import determine_local_world_size

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    args = launched("ddp.yaml")
    prepare_multi_gpu_env(args)
    assert determine_local_world_size(args.nproc_per_node) == 4


@pytest.mark.parametrize("name", ZERO)
def test_deepspeed_takes_the_settings(name):
    stage = int(name.split("zero")[1][0])
    with patch_environment(**deepspeed_environment(name)):
        plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config
    assert settings["gradient_accumulation_steps"] == settings["gradient_clipping"] == "auto"  # the recipe's
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(**settings["zero_optimization"])
    assert zero.stage == stage and zero.gather_16bit_weights_on_model_save == (stage == 3)
    assert (zero.offload_optimizer is not None and zero.offload_optimizer.device == "cpu") == ("offload" in name)


def test_accelerate_takes_the_settings_of_fsdp2_and_finds_our_layers():
    args = launched("fsdp2.yaml")
    environment = {key: value for key, value in prepare_multi_gpu_env(args).items() if key.startswith("FSDP_")}
    with patch_environment(**environment):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL" in str(plugin.state_dict_type)
    model = MiniMindForCausalLM(small_config("dense3"))
    plugin.set_auto_wrap_policy(model)
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {type(model.model.layers[0])}


def test_a_twin_differs_in_the_device_and_the_count_only():
    for twin in (FOLDER / "cpu").glob("*.yaml"):
        ours, original = (vars(load_config_from_file(str(path))) for path in (twin, FOLDER / twin.name))
        assert {key for key in ours if ours[key] != original[key]} == {"use_cpu", "num_processes"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is for accelerators"),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "told to start several processes and started one"),
    ],
)
def test_what_would_silently_be_another_launch_is_refused(tmp_path, monkeypatch, environment, says):
    PretrainRecipeConfig(output_dir=str(tmp_path), use_cpu=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says):
        PretrainRecipeConfig(output_dir=str(tmp_path), use_cpu=True)


def test_the_page_names_every_file():
    page = (FOLDER / "README.md").read_text()
    assert all(f"`{Path(name).as_posix()}`" in page for name in FILES)
