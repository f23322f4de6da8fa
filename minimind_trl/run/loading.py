"""Load the tokenizer, the model and the data of a recipe."""

import copy
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, DatasetDict, IterableDatasetDict
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..data import DatasetMixer, load_or_prepare
from ..data.streaming import share_of
from ..errors import InputError
from ..models import MiniMindConfig, MiniMindForCausalLM, MiniMindForSequenceClassification, load_model, to_twin
from ..models.adapters import leaves_experts_out, lora_config
from ..models.checkpoints import check_vocabulary, load_tokenizer_of, tokenizer_folder
from ..models.names import check_name
from ..models.stored import is_native_file
from ..tokenization import TINY_TOKENIZER_DIR, prepared_for_trl
from .arguments import RecipeArguments


def load_tokenizer(args: RecipeArguments) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model.

    Raises:
        InputError: the model brings none; the message says how to give one.
    """
    if args.from_weight and is_native_file(args.from_weight) and not Path(args.from_weight).exists():
        raise InputError(f"--from_weight {args.from_weight}: no such file")
    name = args.tokenizer or args.from_weight
    check_name(name or "", "--tokenizer" if args.tokenizer else "--from_weight")
    if args.tokenizer is None:
        if args.preset in ("nano", "tiny"):
            name = str(TINY_TOKENIZER_DIR)
        elif args.preset or tokenizer_folder(name) is None:
            raise InputError(
                f"{args.preset or name} brings no tokenizer; give --tokenizer DIR (upstream's for its checkpoints, or "
                "one made by `minimind-trl tokenizer train`)"
            )
    tokenizer = load_tokenizer_of(name)
    if args.chat_template is not None:
        tokenizer.chat_template = args.chat_template
    return prepared_for_trl(tokenizer)  # it is saved like this, so that TRL's own scripts can use the checkpoint


def load_or_create_model(args: RecipeArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> MiniMindForCausalLM:
    """The checkpoint of `--from_weight`, or fresh weights of `--preset` in the tokenizer's vocabulary.

    Raises:
        InputError: the checkpoint cannot be loaded, is not a language model, or has a smaller vocabulary than the
            tokenizer.
    """
    if args.preset:
        set_seed(seed)
        config = MiniMindConfig.from_preset(args.preset)
        if config.vocab_size != len(tokenizer):
            print(f"vocabulary: {len(tokenizer)} tokens, the tokenizer's (the preset has {config.vocab_size})")
            config.vocab_size = len(tokenizer)
        return MiniMindForCausalLM(config)
    overrides = {} if args.num_attention_heads is None else {"num_attention_heads": args.num_attention_heads}
    model = load_model(args.from_weight, config_overrides=overrides)
    check_vocabulary(model, tokenizer, args.from_weight)
    return model


def as_reward_model(model: MiniMindForCausalLM, seed: int) -> MiniMindForSequenceClassification:
    """The language model's body with a new head that gives a single number, the reward."""
    set_seed(seed)
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    reward_model = MiniMindForSequenceClassification(config)
    reward_model.model.load_state_dict(model.model.state_dict())
    return reward_model.to(model.dtype)


def as_twin(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model of `--as_twin`.

    Raises:
        InputError: the model is a mixture of experts, whose balancing loss is another one in the stock class.
    """
    if model.config.num_experts:
        raise InputError(
            "--as_twin: the stock classes balance a mixture of experts by another loss than MiniMind's: leave it out "
            "(`minimind-trl convert --to vllm` makes a trained one into its twin, where it has one)"
        )
    return to_twin(model)


def adapter_for(args: RecipeArguments, lora, model: PreTrainedModel) -> LoraConfig | None:
    """The adapter config for `--use_peft`, else None.

    Raises:
        InputError: from `lora_config`; or there is no checkpoint for the adapter to belong to.
    """
    if lora.use_peft and args.preset:
        raise InputError("--use_peft: an adapter belongs to a checkpoint, and --preset saves none: give --from_weight")
    adapter = lora_config(lora, model)
    if adapter and leaves_experts_out(adapter, model) and PartialState().is_main_process:
        print(
            "LoRA: all-linear leaves the experts' stacked weights as they are; --lora_target_parameters "
            "mlp.experts.gate_up_proj mlp.experts.down_proj adapts them, too"
        )
    return adapter


def open_mixture(path: str, phases: tuple[str, ...]) -> DatasetMixer:
    """The mixture of `--data_config`.

    Raises:
        InputError: the file is not a mixture, or is for another phase.
    """
    mixer = DatasetMixer.from_yaml(path)
    if mixer.mixture.metadata.phase not in phases:
        raise InputError(
            f"{path}: phase {mixer.mixture.metadata.phase!r}, but this recipe trains {' or '.join(phases)}"
        )
    return mixer


def build_data(args: RecipeArguments, config, tokenizer: PreTrainedTokenizerBase, mixer: DatasetMixer) -> DatasetDict:
    """The mixture's train and validation rows, with a description on stdout and warnings on stderr.

    Raises:
        InputError: the mixture cannot be built.
    """
    if args.use_prepared:
        data = load_or_prepare(mixer, f"{args.prepared_dir}/{mixer.name}", tokenizer, keep_tokens=True)
    else:
        data = mixer.build(tokenizer, keep_tokens=True)
    if mixer.mixture.streaming:
        data = _streams(args, config, data, mixer)
    if config.process_index == 0:
        for line in (args.data_config, *mixer.describe().splitlines()):
            print(f"data: {line}")
        for line in mixer.warnings():
            print(f"warning: {line}", file=sys.stderr)
    return data


def _streams(args: RecipeArguments, config, streams: IterableDatasetDict, mixer: DatasetMixer) -> DatasetDict:
    """This process's share of the training rows, and the held-out rows as a map-style data set."""
    # Online trainers share out prompts themselves, since the answers to one prompt span processes.
    whole = mixer.mixture.metadata.phase == "rlaif"
    train = streams["train"] if whole else share_of(streams["train"], config.process_index, config.world_size)
    if not args.eval_interval:
        return DatasetDict(streams | {"train": train})
    count = args.eval_batches * config.per_device_eval_batch_size * config.world_size
    held_out = list(streams["validation"].take(count))
    if not held_out:
        raise InputError(
            f"{mixer.path}: the validation split is empty: validation.ratio {mixer.mixture.validation.ratio:g} holds "
            "none of the rows out; raise the ratio, add rows, or set validation: none to train without a held-out part"
        )
    return DatasetDict(train=train, validation=Dataset.from_list(held_out))
