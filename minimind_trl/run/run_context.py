"""What the parts of a run share: options, tokenizer, model and data."""

import sys

from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from ..data import DatasetMixer
from ..internals import replace_bars_of_datasets
from ..models.cpu_kernels import use_cpu_kernels
from ..tokenization import with_training_template
from .arguments import RecipeArguments
from .loading import adapter_for, as_reward_model, as_twin, load_or_create_model, load_tokenizer


class RunContext:
    """A recipe's options, and the tokenizer, model and data that they name.

    Args:
        args: our options.
        config: TRL's, for the trainer.
        lora: TRL's options for LoRA.
        reward_model: replace the model's language head by one that gives a single number.

    Attributes:
        tokenizer: as it will be saved.
        model: from the checkpoint or the preset, on the CPU; its stock twin with `--as_twin`.
        peft_config: the adapter of `--use_peft`, else None.
        data: the mixture's splits, after `Run.load_data`.
        mixer: describes the mixture and how it was built, after `Run.load_data`.

    Raises:
        InputError: from `load_tokenizer`, `load_or_create_model`, `as_twin` and `adapter_for`.
    """

    data: DatasetDict
    mixer: DatasetMixer

    def __init__(self, args: RecipeArguments, config, lora, *, reward_model: bool = False):
        if not sys.stderr.isatty():
            replace_bars_of_datasets()
        self.args, self.config, self.lora = args, config, lora
        self.tokenizer = load_tokenizer(args)
        self.model = load_or_create_model(args, self.tokenizer, config.seed)
        if reward_model:
            self.model = as_reward_model(self.model, config.seed)
        if args.as_twin:
            self.model = as_twin(self.model)
        if config.use_cpu:
            use_cpu_kernels(self.model)
        self.peft_config = adapter_for(args, lora, self.model)

    @property
    def training_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose template marks the assistant's turns, if the loss is on these only."""
        return with_training_template(self.tokenizer) if self.config.assistant_only_loss else self.tokenizer
