"""The memory that a trainer needs, counted on tensors without data.

`count_trainer` runs the real trainer: one step, one evaluation batch and the ends of a generation. `MemoryCounter` adds
up the bytes that are alive, so the figures follow the model, the loss, the precision and the optimizer that will run.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, Trainer

from ..errors import InputError, first_line
from ..evaluation.held_out import evaluating, score_rows
from ..internals import fake_tensor_exceptions, fake_tensor_tools
from ..models import MiniMindModel
from ..models.modeling_minimind import MiniMindDecoderLayer

FakeTensor, FakeTensorMode, TorchDispatchMode, tree_iter = fake_tensor_tools()
_ITEM, _GROUPED_MM = fake_tensor_exceptions()
_LARGEST_REAL = 2**24  # bytes of ids and masks that keep their values


class MemoryCounter(TorchDispatchMode):
    """Within this block, new floating-point tensors have no data, and the bytes of all living tensors are counted.

    Token ids, masks and what follows from them keep their values as long as they are small, so that a trainer's
    counts and lengths are real. Where a trainer asks for a number that depends on the model, it gets 1 (or False).

    Attributes:
        now: bytes alive.
        peak: the most there have been.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = self._run(func, args, kwargs or {})
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def most(self, run: Callable[[], object]) -> int:
        """Bytes that `run` needs at its highest moment, beyond what is there before."""
        before = self.peak = self.now
        run()
        return self.peak - before

    def _run(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        tensors = [part for part in tree_iter((args, kwargs)) if isinstance(part, Tensor)]
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return self._run_without_fakes(func, args, kwargs, is_factory=not tensors)
        if func is _ITEM:
            return torch.ones((), dtype=args[0].dtype).item() if args[0].dtype != torch.bool else False
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [index for given in args[1] for index in self._without_mask(given)])
        with self._fake:
            return _grouped_product(*args, **kwargs) if func is _GROUPED_MM else func(*args, **kwargs)

    def _run_without_fakes(self, func: Callable, args: tuple, kwargs: dict[str, Any], is_factory: bool) -> Any:
        try:
            with self._fake:
                out = func(*args, **kwargs)
        except RuntimeError:  # its shape depends on values
            return func(*args, **kwargs)
        made = [part for part in tree_iter(out) if isinstance(part, Tensor)]
        is_weight_like = is_factory and any(part.is_floating_point() for part in made)
        return out if is_weight_like or sum(part.nbytes for part in made) > _LARGEST_REAL else func(*args, **kwargs)

    def _without_mask(self, index: Tensor | None) -> tuple[Tensor | None, ...]:
        """The positions that a mask picks, for each of its dimensions; all of them where the mask has no data."""
        if index is None or index.dtype != torch.bool:
            return (index,)
        if not isinstance(index, FakeTensor):
            return index.nonzero().unbind(1)
        with self._fake:
            return (index.new_empty(index.numel(), dtype=torch.long),) * index.dim()

    def _count(self, storage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _grouped_product(left: Tensor, right: Tensor, offs: Tensor | None = None, bias=None, out_dtype=None) -> Tensor:
    """The result's shape, as torch computes it; torch's own check without data allows only bfloat16."""
    groups = [] if left.dim() + right.dim() == 5 else [len(offs) if offs is not None else left.shape[0]]
    return left.new_empty(*groups, left.shape[-2], right.shape[-1], dtype=out_dtype or left.dtype)


@dataclass
class Memory:
    """What one process needs, in bytes, with the whole model in it; `sharding.shard` gives its share."""

    parameters: int
    trained: int  # elements that get gradients
    gradients: int
    optimizer: int
    optimizer_step: int  # for the moment of a step
    models: dict[str, int] = field(default_factory=dict)  # that are not trained
    activations: int = 0  # of the layers, forward and backward, at their highest
    head: int = 0  # what logits and loss add to that
    gradients_then: int = 0  # those that exist at that moment
    generation: int = 0
    kv_cache: int = 0
    evaluation: int = 0
    width: int = 4  # bytes of a weight in computation
    largest_layer: int = 0  # elements of the largest decoder layer
    outside_layers: int = 0  # elements of embeddings, head and norms


def optimizer_memory(parameters: list[nn.Parameter], config) -> tuple[int, int]:
    """Bytes of the optimizer's state for these parameters in float32, and what a step needs beside it.

    Raises:
        InputError: `--optim` cannot run without data (or without its package), so it cannot be counted.
    """
    with MemoryCounter() as memory:
        trained = [nn.Parameter(torch.empty(part.shape)) for part in parameters if part.requires_grad]
        for part in trained:
            part.grad = torch.empty_like(part)
        try:
            make, options = Trainer.get_optimizer_cls_and_kwargs(config)
            before = memory.now
            optimizer = make(trained, **options)
            optimizer.step()
            state = memory.now - before
            return state, memory.most(optimizer.step)
        except Exception as error:
            reason = first_line(error)
            name = getattr(config.optim, "value", config.optim)
            raise InputError(f"--optim {name}: its memory cannot be counted here: {reason}") from error


def checkpoint_activations(model: nn.Module, config) -> None:
    """Switch on gradient checkpointing as `Trainer.train` does."""
    options = dict(config.activation_checkpointing_kwargs or {})
    named = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
    model.activation_checkpointing_enable(options or None, **named)


def state_memory(model: nn.Module, config) -> Memory:
    """Weights, gradients and optimizer of a model; no activations."""
    parameters = list(model.parameters())
    trained = [part for part in parameters if part.requires_grad]
    state, step = optimizer_memory(parameters, config)
    return Memory(
        parameters=_bytes(parameters),
        trained=sum(part.numel() for part in trained),
        gradients=_bytes(trained),
        optimizer=state,
        optimizer_step=step,
    )


def count_trainer(
    memory: MemoryCounter, trainer: Trainer, batch: Any, eval_batch: Any, prompt: int = 0, answer: int = 0
) -> Memory:
    """What a trainer needs whose models are on tensors without data.

    Args:
        memory: entered since before the models were made.
        batch: what `training_step` gets: a collated batch, or the rows of an online trainer.
        eval_batch: what an evaluation pass gets: a collated batch for the trainer's own loss, ids and targets of rows
            for `score_rows`, or None where there is no such pass.
        prompt: tokens of the prompts that are answered.
        answer: tokens of the answers, 0 where the trainer generates none.
    """
    config, model = trainer.args, trainer.model
    counted = state_memory(model, config)
    layers = [_elements(part) for part in model.modules() if isinstance(part, MiniMindDecoderLayer)]
    counted.largest_layer, counted.outside_layers = max(layers), _elements(model) - sum(layers)
    counted.width = 2 if config.bf16 else next(model.parameters()).element_size()
    helpers = {"reference model": "ref_model", "teacher model": "teacher_model"}
    models = {name: getattr(trainer, attribute, None) for name, attribute in helpers.items()}
    counted.models = {name: _bytes(helper.parameters()) for name, helper in models.items() if helper is not None}
    if config.activation_checkpointing:
        checkpoint_activations(model, config)
    wrapped = trainer.accelerator.prepare_model(model)
    _count_training(memory, trainer, wrapped, batch, counted)
    if answer:
        rows = config.per_device_train_batch_size
        if isinstance(batch, list):  # a rollout's
            rows = max(len(batch), config.per_device_eval_batch_size)
        _count_generation(memory, wrapped, rows, prompt, answer, counted)
    if eval_batch is not None:
        counted.evaluation = memory.most(lambda: _evaluate(trainer, wrapped, eval_batch))
    return counted


def _count_training(memory: MemoryCounter, trainer: Trainer, model: nn.Module, batch: Any, counted: Memory) -> None:
    """Peaks of the step and of its layers alone, both without gradients, and what gradients add to the step."""
    trained = [part for part in model.parameters() if part.requires_grad]
    trainer.current_gradient_accumulation_steps = steps = trainer.args.gradient_accumulation_steps
    calls: dict[nn.Module, dict[str, Any]] = {}
    hooks = [part.register_forward_pre_hook(_note_call(calls), with_kwargs=True) for part in _bodies(model)]
    hooks += [part.register_post_accumulate_grad_hook(_drop_gradient) for part in trained]

    def step() -> None:
        trainer.training_step(model, batch)

    def layers_alone() -> None:
        with trainer.accelerator.autocast():
            outputs = [body(**inputs).last_hidden_state for body, inputs in calls.items()]
        sum(output.float().sum() for output in outputs).backward()

    whole = memory.most(step)
    for hook in hooks:
        hook.remove()
    hooks = [part.register_post_accumulate_grad_hook(_drop_gradient) for part in trained]
    counted.activations = min(whole, memory.most(layers_alone))
    counted.head = whole - counted.activations
    for hook in hooks:
        hook.remove()
    passes = [step] * min(steps, 2)
    counted.gradients_then = max(0, memory.most(lambda: [run() for run in passes]) - whole)
    model.zero_grad()


def _bodies(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, MiniMindModel)]


def _note_call(calls: dict[nn.Module, dict[str, Any]]) -> Callable:
    """A hook that keeps the arguments of a body's last forward pass with gradients."""

    def note(body: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            calls[body] = kwargs | dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False))

    return note


def _drop_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _evaluate(trainer: Trainer, model: nn.Module, batch: Any) -> None:
    if not isinstance(batch, list):
        trainer.prediction_step(model, batch, prediction_loss_only=True)
        return
    with evaluating(model):
        score_rows(model, batch, torch.ones(model.config.vocab_size, dtype=torch.long))


@torch.no_grad()
def _count_generation(
    memory: MemoryCounter, model: nn.Module, rows: int, prompt: int, answer: int, counted: Memory
) -> None:
    """The first step of generation, which reads the prompts, and the last, with the longest cache."""

    def generate() -> None:
        cache = DynamicCache(config=model.config)
        inputs = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        _next_token(model, torch.zeros(rows, prompt, dtype=torch.long), prompt, inputs)
        for layer in cache.layers:
            wanted = (rows, layer.keys.shape[1], prompt + answer - 2, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.new_zeros(wanted), layer.values.new_zeros(wanted)
        _next_token(model, torch.zeros(rows, 1, dtype=torch.long), prompt + answer - 1, inputs)
        counted.kv_cache = _bytes(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))

    with evaluating(model):
        counted.generation = memory.most(generate)
    counted.generation -= counted.kv_cache


def _next_token(model: nn.Module, ids: Tensor, length: int, inputs: dict[str, Any]) -> None:
    mask = torch.ones(len(ids), length, dtype=torch.long)
    scores = model(input_ids=ids, attention_mask=mask, **inputs).logits[:, -1].float()
    torch.multinomial(scores.softmax(-1), 1)


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _elements(module: nn.Module) -> int:
    return sum(part.numel() for part in module.parameters())
