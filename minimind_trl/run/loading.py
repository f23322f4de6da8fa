"""Tokenizer, model and data of a recipe."""

import copy
import sys
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDatasetDict
from transformers import PreTrainedTokenizerBase, set_seed

from ..data import DatasetMixer, load_or_prepare
from ..data.streaming import share_of
from ..errors import InputError
from ..models import MiniMindConfig, MiniMindForCausalLM, MiniMindForSequenceClassification, load_model
from ..models.checkpoints import check_vocabulary, load_tokenizer_of, tokenizer_folder
from ..models.names import check_name
from ..models.stored import NATIVE_SUFFIXES
from ..tokenization import TINY_TOKENIZER_DIR
from .arguments import RecipeArguments
from .training import take_output_folder


def load_tokenizer(args: RecipeArguments) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model.

    Raises:
        InputError: none is known for this model; the message says how to give one.
    """
    if args.from_weight and Path(args.from_weight).suffix in NATIVE_SUFFIXES and not Path(args.from_weight).exists():
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
    return tokenizer


def load_or_create_model(args: RecipeArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> MiniMindForCausalLM:
    """The checkpoint of `--from_weight`, or fresh weights of `--preset` in the tokenizer's vocabulary.

    Raises:
        InputError: the checkpoint cannot be loaded, is no language model, or its vocabulary is smaller than the
            tokenizer's.
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
    """The language model's body under a fresh head that gives one number, the reward."""
    set_seed(seed)
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    reward_model = MiniMindForSequenceClassification(config)
    reward_model.model.load_state_dict(model.model.state_dict())
    return reward_model.to(model.dtype)


def load_data(
    args: RecipeArguments, config, tokenizer: PreTrainedTokenizerBase, phases: tuple[str, ...]
) -> tuple[DatasetDict, DatasetMixer]:
    """The mixture's train and validation rows, and the mixer, which tells what became of the others.

    Sets `config.max_length`, if there is such a setting, from the mixture where it is unset. Takes the output folder
    before the mixture is built.

    Raises:
        InputError: the mixture cannot be built, or is for another phase; and of `take_output_folder`.
    """
    mixer = DatasetMixer.from_yaml(args.data_config)
    metadata = mixer.mixture.metadata
    if metadata.phase not in phases:
        raise InputError(f"{args.data_config}: phase {metadata.phase!r}, but this recipe trains {' or '.join(phases)}")
    if getattr(config, "max_length", 0) is None:  # online trainers have none
        config.max_length = metadata.max_seq_length or 1024
    if mixer.mixture.streaming and config.max_steps <= 0:
        raise InputError(f"{args.data_config}: a streaming mixture has no end that is known: set --max_steps")
    _settle_lengths(args, config, mixer)
    if mixer.mixture.validation is None and args.eval_interval:
        args.eval_interval = 0
        if config.process_index == 0:
            print(f"evaluation: off, {args.data_config} holds no rows out (validation: none)")
    take_output_folder(args, config)
    if args.use_prepared:
        data = load_or_prepare(mixer, Path(args.prepared_dir) / mixer.name, tokenizer)
    else:
        data = mixer.build(tokenizer)
    if mixer.mixture.streaming:
        data = _streams(args, config, data, mixer)
    if config.process_index == 0:
        for line in (args.data_config, *mixer.describe().splitlines()):
            print(f"data: {line}")
        for line in mixer.warnings():
            print(f"warning: {line}", file=sys.stderr)
    return data, mixer


def _settle_lengths(args: RecipeArguments, config, mixer: DatasetMixer) -> None:
    """Tell the mixer how many tokens a row may have here, and what this trainer does with longer ones.

    Raises:
        InputError: the mixture wants longer rows cut, which the trainer does not do.
    """
    mixer.max_length = getattr(config, "max_length", None)
    if getattr(config, "stage", None) == "reward" and mixer.on_long != "drop":
        if mixer.mixture.metadata.on_long:
            raise InputError(
                f"{args.data_config}: metadata.on_long: {mixer.on_long}, but a reward model judges whole rows, so that "
                "longer ones are dropped: set on_long: drop"
            )
        mixer.on_long = "drop"
    if mixer.on_long == "cut" and getattr(config, "packing", False) and config.packing_strategy != "bfd":
        mixer.on_long = "chunk"  # as TRL's other ways to pack do it


def _streams(args: RecipeArguments, config, streams: IterableDatasetDict, mixer: DatasetMixer) -> DatasetDict:
    """This process's share of the training rows; and the held-out rows as a data set, since they are read often."""
    # Prompts are shared by the trainer, which must give the answers to one prompt to processes side by side.
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
