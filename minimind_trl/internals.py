"""Every private name of another library that this package calls or overrides, and the check that it is still there.

The rest of the package uses public names only: a section below gives each private one a public name, as a mixin whose
methods a trainer overrides, a property, or a function. `moved()` compares the whole list with the installed libraries;
`tests/test_internals.py` runs it, so that an upgrade reports in plain lines what has moved. Exempt are
`modeling_minimind.py` and `configuration_minimind.py`: they travel with a checkpoint, and use only what transformers
documents for models.

Nothing heavy is imported at the top: any part of the package may import this module.
"""

import argparse
import functools
import importlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

SEEN_IN = {"accelerate": "1.15.0", "datasets": "5.2.0", "torch": "2.13.0", "transformers": "5.24.0", "trl": "1.16.0"}
"""The versions in which the names below were last seen."""


@dataclass(frozen=True)
class PrivateName:
    """One name that is not public.

    Attributes:
        owner: `module` or `module:Class` that has it.
        name: the function, method or attribute.
        parameters: those that are passed by name or relied on, of a function.
        assigned: whether it is an instance's attribute, found in the class's source rather than on the class.
    """

    owner: str
    name: str
    parameters: tuple[str, ...] = ()
    assigned: bool = False


def moved(names: tuple[PrivateName, ...]) -> list[str]:
    """One line for each name that the installed library lacks, or whose parameters differ."""
    return [problem for name in names if (problem := _problem(name))]


def _problem(entry: PrivateName) -> str | None:
    module_name, _, class_name = entry.owner.partition(":")
    library = module_name.partition(".")[0]
    installed = importlib.metadata.version(library)
    where = f"{entry.owner}.{entry.name} (seen in {library} {SEEN_IN.get(library, '?')}, installed {installed})"
    try:
        owner = importlib.import_module(module_name)
        owner = getattr(owner, class_name) if class_name else owner
    except (ImportError, AttributeError) as error:
        return f"{where}: {error}"
    if entry.assigned:
        return None if _assigns(owner, entry.name) else f"{where}: no longer set"
    if not hasattr(owner, entry.name):
        return f"{where}: no longer there"
    if not entry.parameters:
        return None
    missing = set(entry.parameters) - set(inspect.signature(getattr(owner, entry.name)).parameters)
    return f"{where}: no parameter {', '.join(sorted(missing))}" if missing else None


def bridged(mixin: type, owner: str) -> tuple[PrivateName, ...]:
    """The private methods that a mixin defines, as names of `owner`, with the parameters that the mixin names."""
    return tuple(
        PrivateName(owner, name, tuple(inspect.getfullargspec(method).args[1:]))
        for name, method in vars(mixin).items()
        if re.match("_[a-z]", name)
    )


def collisions(mixin: type, library_class: type) -> list[str]:
    """The public names of a mixin that a library's class has, too: our mixin would replace them."""
    return [name for name in vars(mixin) if not name.startswith("_") and hasattr(library_class, name)]


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within the block, an object of a library has these values of attributes that it gives no other way to change."""
    kept = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)


def _assigns(owner: type, name: str) -> bool:
    return any(re.search(rf"self\.{name}\b", _source(base)) for base in owner.__mro__ if base is not object)


_source = functools.cache(inspect.getsource)  # of a trainer's whole class, for every one of its names


# --- datasets ---------------------------------------------------------------------------------------------------------

DATASETS: tuple[PrivateName, ...] = (PrivateName("datasets:IterableDataset", "_distributed", assigned=True),)


def is_node_share(stream: Any) -> bool:
    """Whether `split_dataset_by_node` has given this process its share of a stream."""
    return stream._distributed is not None


# --- torch and accelerate ---------------------------------------------------------------------------------------------

ENGINES: tuple[PrivateName, ...] = (
    PrivateName("accelerate.utils.other", "is_deepspeed_available"),
    PrivateName("torch.distributed.distributed_c10d", "_get_default_store"),
    PrivateName("torch.distributed.distributed_c10d", "_set_pg_timeout", ("timeout",)),
    PrivateName("torch._dynamo.config", "recompile_limit"),
    PrivateName("torch._subclasses.fake_tensor", "FakeTensor"),
    PrivateName("torch._subclasses.fake_tensor", "FakeTensorMode", ("allow_non_fake_inputs",)),
    PrivateName("torch.utils._python_dispatch", "TorchDispatchMode"),
    PrivateName("torch.utils._pytree", "tree_iter"),
    PrivateName("torch.ops:aten", "_grouped_mm"),
    PrivateName("torch.ops:aten", "_local_scalar_dense"),
    PrivateName("torch.ops:aten", "_softmax_backward_data"),
    PrivateName("torch.nn:Module", "_apply", ("fn", "recurse")),
    PrivateName("transformers:TrainingArguments", "_setup_devices"),
    PrivateName("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE"),
)


def unwrap_without_importing_deepspeed() -> None:
    """Keep accelerate from importing DeepSpeed, wherever it is installed, to take a model out of its wrapper.

    That import prints and takes seconds. A model can only be in DeepSpeed's wrapper once DeepSpeed has been imported.
    """
    import accelerate.utils.other

    accelerate.utils.other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def set_process_group_timeout(timeout: timedelta) -> None:
    """Let processes wait for each other this long from here on; `torch.distributed` must be initialized."""
    from torch.distributed.distributed_c10d import _get_default_store, _set_pg_timeout

    _set_pg_timeout(timeout)
    _get_default_store().set_timeout(timeout)  # where NCCL's processes first meet


def fake_tensor_tools() -> tuple:
    """torch's FakeTensor, FakeTensorMode, TorchDispatchMode and tree_iter, all of private modules."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    return FakeTensor, FakeTensorMode, TorchDispatchMode, tree_iter


def fake_tensor_exceptions() -> tuple:
    """Operators that need care without data: that of `Tensor.item`, and the grouped matrix product."""
    import torch

    return torch.ops.aten._local_scalar_dense.default, torch.ops.aten._grouped_mm.default


def compile_for(kinds: int) -> None:
    """Let torch compile a function for so many kinds of input before it goes on without compiling; 8 by default."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, kinds)


def softmax_backward(gradient: Any, probabilities: Any) -> Any:
    """The gradient of the scores, given that of their softmax over the last dimension."""
    import torch

    return torch.ops.aten._softmax_backward_data(gradient, probabilities, -1, probabilities.dtype)


@contextmanager
def modules_of_fake_tensors() -> Iterator[None]:
    """Within this block, modules of fake tensors can be moved and copied.

    torch can do neither: `nn.Module.to` wants to swap their parameters in place, and `copy.deepcopy` would copy the
    whole FakeTensorMode with each tensor, which corrupts memory. Here a parameter that moves is replaced by a new one,
    and tied parameters stay tied.
    """
    from torch import nn

    fake_tensor = fake_tensor_tools()[0]

    def like(tensor, moved):
        return nn.Parameter(moved.detach(), tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved

    def apply(self, fn, recurse=True):
        new: dict[int, Any] = {}
        for module in self.modules() if recurse else [self]:
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and id(tensor) not in new:
                        moved = fn(tensor)
                        new[id(tensor)] = tensor if moved is tensor else like(tensor, moved)
                    tensors[name] = None if tensor is None else new[id(tensor)]
        return self

    def deepcopy(self, memo):
        if id(self) not in memo:
            memo[id(self)] = like(self, self.detach().clone())
        return memo[id(self)]

    kept, nn.Module._apply, fake_tensor.__deepcopy__ = nn.Module._apply, apply, deepcopy
    try:
        yield
    finally:
        nn.Module._apply = kept
        del fake_tensor.__deepcopy__


def use_cpu(training_args: Any) -> None:
    """Have training arguments that were made on a GPU make their device anew, the CPU."""
    training_args.use_cpu = True
    if training_args.device.type != "cpu":
        del training_args._setup_devices  # a cached property
    _ = training_args.device  # now: making it resets accelerate's state, which an Accelerator made later needs


@contextmanager
def fused_head_columns(largest: int) -> Iterator[None]:
    """Let TRL's fused head reserve tiles of at most so many columns of the vocabulary."""
    import trl.trainer.utils

    reserved = trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(reserved, largest)
    try:
        yield
    finally:
        trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = reserved


# --- transformers' Trainer --------------------------------------------------------------------------------------------


class TrainerHooks:
    """Public names for the private methods of transformers' Trainer that our trainers override.

    Our mixins derive from this class and stand before TRL's trainer: `class MiniMindSFTTrainer(OurMixin, SFTTrainer)`.
    Trainer calls `self._save_checkpoint`, which calls our `save_checkpoint`; the last `super().save_checkpoint` of our
    mixins arrives here, and calls the `_save_checkpoint` of TRL's trainer or of Trainer.
    """

    # Steps

    def _run_epoch(self, **kwargs) -> None:
        self.run_epoch(**kwargs)

    def run_epoch(self, **kwargs) -> None:
        """One pass over the training data; `kwargs` as of Trainer's method, all by name."""
        super()._run_epoch(**kwargs)

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        return self.prepare_inputs(inputs)

    def prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        """A batch of the data loader, on the model's device; for online trainers also with its completions."""
        return super()._prepare_inputs(inputs)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        self.track_num_input_tokens(inputs)

    def track_num_input_tokens(self, inputs: Any) -> None:
        """Called after the backward pass of every batch."""
        super()._track_num_input_tokens(inputs)

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.clip_grad_norm(model)

    def clip_grad_norm(self, model: Any) -> Any:
        """Clip the gradients to `max_grad_norm`; returns their norm before."""
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.get_grad_norm(model, grad_norm)

    def get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm to log; `grad_norm` is that of `clip_grad_norm`, None without clipping."""
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        self.maybe_log_save_evaluate(*args, **kwargs)

    def maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        """Called after every step and every epoch."""
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # Data

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ) -> Any:
        return self.get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ) -> Any:
        """The data loader of training, evaluation or prediction."""
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.get_train_sampler(train_dataset)

    def get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The sampler of the training rows; None for a stream."""
        return super()._get_train_sampler(train_dataset)

    def collator_without_unused_columns(self, collator: Callable, description: str) -> Callable:
        """A collator that drops the columns which the model does not take, if `remove_unused_columns` says so."""
        return super()._get_collator_with_removed_columns(collator, description)

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return self.get_run_dir(trial)

    def get_run_dir(self, trial: Any = None) -> str:
        """The folder that checkpoints are written to."""
        return super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_checkpoint(model, trial)

    def save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write `checkpoint-STEP` with all that a resumed run needs, and delete older ones."""
        super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.push_from_checkpoint(checkpoint_folder)

    def push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint to the Hub, if `hub_strategy` says so."""
        super()._push_from_checkpoint(checkpoint_folder)

    def save_without_push(self, output_dir: str | None = None) -> None:
        """Save model and tokenizer as `save_model` does, even with `push_to_hub` only on the disk."""
        self.save_model(output_dir, _internal_call=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.write_model(output_dir, state_dict)

    def write_model(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the weights, the tokenizer and the training arguments to a folder."""
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_from_checkpoint(resume_from_checkpoint, model)

    def load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self.load_best_model()

    def load_best_model(self) -> None:
        """Load the weights of the best checkpoint at the end of training."""
        super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.save_optimizer_and_scheduler(output_dir)

    def save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.load_optimizer_and_scheduler(checkpoint)

    def load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also called without a checkpoint, when a new training begins."""
        super()._load_optimizer_and_scheduler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        self.save_rng_state(output_dir)

    def save_rng_state(self, output_dir: str) -> None:
        """Save the random states of this process."""
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self.load_rng_state(checkpoint)

    def load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)

    # What TRL's trainers set

    @property
    def metrics_to_log(self) -> dict[str, dict[str, list[float]]]:
        """Figures that TRL's trainers average into their next log, by name, under "train" and "eval"."""
        return getattr(self, "_metrics", {})


def attention_implementation(model: Any) -> str:
    """Such as "sdpa" or "flash_attention_2"."""
    return model.config._attn_implementation


_TRAINER = "transformers.trainer:Trainer"
TRANSFORMERS: tuple[PrivateName, ...] = (
    *bridged(TrainerHooks, _TRAINER),
    PrivateName(
        _TRAINER, "_run_epoch", ("epoch", "epochs_trained", "resume_from_checkpoint", "steps_trained_in_current_epoch")
    ),
    PrivateName(_TRAINER, "_get_collator_with_removed_columns", ("data_collator", "description")),
    PrivateName(_TRAINER, "save_model", ("_internal_call",)),
    PrivateName("transformers:PreTrainedConfig", "_attn_implementation"),
    PrivateName("trl:SFTTrainer", "_metrics", assigned=True),
)

# --- TRL --------------------------------------------------------------------------------------------------------------


class SFTHooks:
    """Public names for the private methods of TRL's SFTTrainer that ours overrides; stands before it."""

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        return self.prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """Tokenize, cut and pack a split; `dataset_name` is "train" or the name of an evaluation set."""
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)


class PairHooks:
    """Public names for the private methods of TRL's DPOTrainer and RewardTrainer that ours override."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return self.prepare_dataset(dataset, processing_class, args, dataset_name)

    def prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Tokenize and cut a split; `dataset_name` is "train" or the name of an evaluation set."""
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)


def replace_bars_of_datasets() -> None:
    """Let `datasets` show a line for every tenth instead of its bars, unless they are disabled."""
    import datasets.arrow_dataset

    from .progress import ProgressLines

    def lines(*args, **kwargs) -> ProgressLines:
        return ProgressLines(*args, **kwargs | {"disable": datasets.are_progress_bars_disabled()})

    datasets.arrow_dataset.hf_tqdm = lines


def reads_boolean(action: argparse.Action) -> bool:
    """Whether TRL's parser takes an option for a boolean, such as `--bf16 true`."""
    from trl.scripts._hf_argparser import string_to_bool

    return action.type is string_to_bool


@dataclass
class Generation:
    """What GRPOTrainer computes while it answers and scores a batch, and does not return.

    Attributes:
        rows: of the dataset, one for each completion.
        completion_ids: token ids of each completion.
        tool_mask: for each completion 1 where the policy chose the token, 0 where a tool did; None without tools.
        prompts, completions: as reward functions get them.
        rewards: (N, functions), of all processes; NaN where a function gave none.
        offered: for each completion the tools that it may call; None without tools.
    """

    rows: list[dict]
    prompts: Any = None
    completions: Any = None
    completion_ids: Any = None
    tool_mask: Any = None
    rewards: Any = None
    offered: Any = None


class GRPOHooks(TrainerHooks):
    """Public names for the private methods and attributes of TRL's GRPOTrainer.

    GRPOTrainer answers and scores a batch in one method, which calls the others without the rows and drops part of
    what they return. `generate_and_score` keeps the rows and those results in one `Generation`, `self._generation`,
    while that method runs, and returns it. `grpo_loss` returns the model's output with the loss. Nothing else is passed
    through attributes. A subclass names itself by `method` and `paper`, which go into model cards and tags.
    """

    method = "GRPO"

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if "method" in vars(cls):
            cls._name, cls._tag_names, cls._paper = cls.method, ("trl", cls.method.lower()), cls.paper

    # Rollouts

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        return self.generate_batch(inputs)

    def generate_batch(self, rows: list[dict]) -> dict[str, Any]:
        """The tensors of a whole rollout, for the rows that the sampler chose; TRL cuts them into minibatches."""
        return self.generate_and_score(rows)[0]

    def generate_and_score(self, rows: list[dict]) -> tuple[dict[str, Any], Generation]:
        """Answer the rows' prompts and score the answers: GRPOTrainer's tensors, with GRPO's advantages."""
        self._generation = generation = Generation(rows)
        tensors = super()._generate_and_score_completions(rows)
        self._generation = None
        return tensors, generation

    def _generate(self, prompts: list) -> tuple:
        import trl.trainer.grpo_trainer

        with replaced(trl.trainer.grpo_trainer, parse_response=self.parse_answer):
            generated = super()._generate(prompts)
        self._generation.completion_ids, self._generation.tool_mask = generated[1:3]
        return generated

    def parse_answer(self, tokenizer, ids: list[int], prefix: list[int] | None = None, tools=None) -> dict[str, Any]:
        """The message that a completion is: `content`, `reasoning_content`, `tool_calls`."""
        from trl.chat_template_utils import parse_response

        return parse_response(tokenizer, ids, prefix=prefix, tools=tools)

    def _tokenize_prompts(self, prompts: list) -> tuple:
        ids = self.tokenize_prompts(prompts, self._generation.rows)
        return super()._tokenize_prompts(prompts) if ids is None else (ids, None, {})

    def _tool_call_loop(
        self, prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields
    ) -> tuple:
        rows, self._generation.completions = self._generation.rows, completions
        found = zip(rows, self._sync_tool_dicts, self._async_tool_dicts, strict=True)
        offered = [self.offered_tools(row, [*now.values(), *later.values()]) for row, now, later in found]
        self._generation.offered = self._sync_tool_dicts = offered
        self._async_tool_dicts = [tools.asynchronous for tools in offered]
        return super()._tool_call_loop(
            prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields
        )

    def offered_tools(self, row: dict, tools: list[Callable]) -> Any:
        """The tools that the answer to this row may call, with an attribute `asynchronous`; both are mappings by name.

        Args:
            tools: the trainer's, and those of the row's environment.
        """
        raise NotImplementedError

    def template_kwargs_of(self, row: dict) -> dict[str, Any]:
        """Arguments for the chat template of this row's prompt and of the results of its tools."""
        return self.chat_template_kwargs

    def tools_without_environments(self) -> list[Callable]:
        return self._standalone_tools

    def environment_of(self, row: dict) -> Any:
        """An environment of the kind that this row asks for; None without environments."""
        if self.environment_factories is None:
            return None
        return self._environment_pool[row.get("environment") if self._multi_environment else None][0]

    def one_of_each_environment(self) -> list[Any]:
        return [pool[0] for pool in self._environment_pool.values()] if self.environment_factories else []

    def _get_tool_suffix_ids(self, tool_messages: list[dict]) -> list[int]:
        generation = self._generation
        answers = zip(generation.rows, generation.completions, strict=True)
        row = next(row for row, messages in answers if messages[-1] is tool_messages[-1])
        with replaced(self, chat_template_kwargs=self.template_kwargs_of(row)):
            return super()._get_tool_suffix_ids(tool_messages)

    def tokenize_prompts(self, prompts: list, rows: list[dict]) -> list[list[int]] | None:
        """Token ids of the prompts of these rows; None leaves them to GRPOTrainer."""
        return None

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs) -> tuple:
        inputs = (prompt_ids, images, multimodal_fields, num_generations)
        if self.use_vllm:
            with self.engine_weights():
                return super()._generate_single_turn(*inputs, **kwargs)
        completions = None if images or multimodal_fields else self.generate_completions(prompt_ids)
        return super()._generate_single_turn(*inputs, **kwargs) if completions is None else (completions, None)

    def generate_completions(self, prompt_ids: list[list[int]]) -> list[list[int]] | None:
        """Token ids of one sampled completion for each prompt; None leaves them to GRPOTrainer."""
        return None

    def engine_weights(self) -> AbstractContextManager:
        """A context around the copying of weights to vLLM."""
        return nullcontext()

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Any:
        self._generation.prompts, self._generation.completions = prompts, completions
        self._generation.rewards = self.score_completions(inputs, prompts, completions, completion_ids_list)
        return self._generation.rewards

    def score_completions(self, rows: list[dict], prompts: list, completions: list, completion_ids: list) -> Any:
        """(N, functions) rewards of all processes' completions; NaN where a function gave none."""
        return super()._calculate_rewards(rows, prompts, completions, completion_ids)

    def discard_reward_logs(self) -> None:
        """Drop what reward functions have logged since the last batch of GRPOTrainer's."""
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()

    def log_advantages(self, advantages: list[float]) -> None:
        """Replace GRPO's advantages of the last batch, of all processes, in the table of completions."""
        for place, value in enumerate(advantages, start=len(self._logs["advantages"]) - len(advantages)):
            self._logs["advantages"][place] = value

    # Minibatches

    def prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        place = self._step % (self.args.steps_per_generation * self.num_iterations)
        if self.model.training and place and place % self.args.steps_per_generation == 0 and self._buffered_inputs:
            self._buffered_inputs = self.minibatches_of_next_epoch(self._buffered_inputs)
        return super().prepare_inputs(inputs)

    def minibatches_of_next_epoch(self, minibatches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The minibatches of a further epoch over a rollout, given those of the last one."""
        return minibatches

    @property
    def rollout_position(self) -> tuple[int, list[dict[str, Any]] | None]:
        """How many minibatches were trained on, and those of the current rollout."""
        return self._step, self._buffered_inputs

    @rollout_position.setter
    def rollout_position(self, position: tuple[int, list[dict[str, Any]] | None]) -> None:
        self._step, self._buffered_inputs = position

    # Loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        return self.minibatch_loss(model, inputs)

    def minibatch_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The loss of one minibatch, with gradients."""
        return self.grpo_loss(model, inputs, self.beta)[0]

    def grpo_loss(self, model: Any, inputs: dict[str, Any], beta: float) -> tuple[Any, Any]:
        """GRPOTrainer's loss of a minibatch with this weight of the KL, and the model's output that it comes from."""
        outputs = []

        def recorded(**model_inputs) -> Any:
            outputs.append(model(**model_inputs))
            return outputs[-1]

        with replaced(self, beta=beta):
            loss = super()._compute_loss(recorded, inputs)
        return loss, outputs[0]

    def logps_and_entropies(self, model, input_ids, attention_mask, length, batch_size, entropy=False) -> tuple:
        """(B, length) log-probabilities of the last tokens, and entropies or None."""
        logps, entropies, _ = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, length, batch_size=batch_size, compute_entropy=entropy
        )
        return logps, entropies

    # What GRPOTrainer sets

    @property
    def text_tokenizer(self) -> Any:
        """The tokenizer, also where `processing_class` is a processor."""
        return self._tokenizer

    @property
    def has_entropy_bonus(self) -> bool:
        return self._entropy_bonus_enabled


_GRPO = "trl:GRPOTrainer"
TRL: tuple[PrivateName, ...] = (
    *bridged(SFTHooks, "trl:SFTTrainer"),
    *bridged(PairHooks, "trl:DPOTrainer"),
    *bridged(PairHooks, "trl:RewardTrainer"),
    PrivateName("trl.scripts._hf_argparser", "string_to_bool"),
    PrivateName("datasets.arrow_dataset", "hf_tqdm"),  # without an underscore, but documented nowhere
    PrivateName("trl.trainer.grpo_trainer", "parse_response", ("tokenizer", "ids", "prefix", "tools")),
    *bridged(GRPOHooks, _GRPO),
    PrivateName(
        _GRPO,
        "_get_per_token_logps_and_entropies",
        ("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
    ),
    *(PrivateName(_GRPO, name) for name in ("_name", "_tag_names", "_paper")),
    *(
        PrivateName(_GRPO, name, assigned=True)
        for name in (
            *("_step", "_buffered_inputs", "_tokenizer", "_logs", "_pending_metrics", "_pending_extra_logs"),
            *("_metrics", "_entropy_bonus_enabled", "_sync_tool_dicts", "_async_tool_dicts", "_standalone_tools"),
            *("_environment_pool", "_multi_environment"),
            # without an underscore, but documented nowhere
            *("generation_config", "generation_kwargs", "eos_token_ids", "use_vllm", "vllm_generation"),
            *("num_generations", "num_generations_eval", "num_iterations", "max_completion_length", "temperature"),
            *("reward_funcs", "reward_func_names", "reward_weights", "ref_model", "beta", "loss_type"),
            *("epsilon_low", "epsilon_high", "mask_truncated_completions", "aux_loss_enabled", "router_aux_loss_coef"),
            *("chat_template", "chat_template_kwargs", "environment_factories", "tools", "rollout_func"),
            *("environments", "max_tool_calling_iterations"),
            *("use_transformers_continuous_batching", "continuous_batching_config"),
        )
    ),
)
