"""`minimind-trl plan`: the memory that a recipe needs, counted before anything is started.

A step of the recipe (forward, backward, optimizer; online also generation) runs on tensors without data (torch's
FakeTensorMode), and `MemoryCounter` adds up what is alive. So activations are not a formula's but those of the model,
the loss, the precision and the optimizer that will run, in seconds. Formulas are only for what spreads a model over
processes: `planning.spread`.
"""

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import trl.trainer.utils
from accelerate.utils import convert_outputs_to_fp32
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import DynamicCache, PretrainedConfig, Trainer
from trl.trainer.utils import add_fused_lm_head

from ..errors import InputError, first_line
from ..models import MiniMindForCausalLM, MiniMindForSequenceClassification, MiniMindForTokenClassification
from ..models.adapters import lora_config
from ..trainers.critic import attach_critic, critic_config
from ..trainers.lm_head import add_learned_positions_head, base_model, unpatched_copy

ONLINE = ("grpo", "ppo", "spo")
PAIRS = ("dpo", "reward")  # two rows of tokens to a row of the data set


class MemoryCounter(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most there have been.

    Enter it inside a FakeTensorMode. `learned` says how many positions a mask of labels picks, which without data
    nobody knows; None: all of them.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.learned: int | None = None
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = None
        if func is torch.ops.aten.index.Tensor:
            out = self._picked(*args)
        elif func is torch.ops.aten._grouped_mm.default:
            out = _grouped_mm(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {})) if out is None else out
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _picked(self, values: Tensor, indices: list) -> Tensor | None:
        if len(indices) != 1 or indices[0].dtype != torch.bool:
            return None
        mask = indices[0]
        count = mask.numel() if self.learned is None else min(self.learned, mask.numel())
        return values.new_empty(count, *values.shape[mask.dim() :])

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

    def most(self, work: Callable[[], object]) -> int:
        """Bytes that `work` needs at its highest moment, beyond what is there before."""
        before = self.peak = self.now
        work()
        return self.peak - before


def _grouped_mm(left: Tensor, right: Tensor, offs: Tensor | None = None, bias=None, out_dtype=None) -> Tensor:
    """The result's shape, as torch computes it; its own check without data allows bfloat16 alone."""
    groups = [] if left.dim() + right.dim() == 5 else [len(offs) if offs is not None else left.shape[0]]
    return left.new_empty(*groups, left.shape[-2], right.shape[-1], dtype=out_dtype or left.dtype)


@contextlib.contextmanager
def counting() -> Iterator[MemoryCounter]:
    """Tensors made in this block have no data, and are counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), MemoryCounter() as memory:
        yield memory


@dataclass
class Memory:
    """What one process needs, in bytes, with the whole model in it; see `spread` for its share of one."""

    parameters: int
    trained: int  # elements that get gradients
    gradients: int
    optimizer: int
    optimizer_step: int  # for the moment of a step
    models: dict[str, int] = field(default_factory=dict)  # that are not trained
    activations: int = 0  # of the body, forward and backward, at their highest
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
    with counting() as memory:
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


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Work:
    """What a recipe does with its models, on tensors without data.

    Args:
        length: tokens of a row; of the online recipes of a prompt.
        zero_stage: DeepSpeed's, 0 without it; it has weights themselves in 16 bits, not only the computation.
        teacher: config of the teacher of `distill`.
    """

    recipe: str
    config: object  # the recipe's, of TRL
    lora: object
    model_config: PretrainedConfig
    length: int
    zero_stage: int = 0
    teacher: PretrainedConfig | None = None

    def measure(self) -> Memory:
        with torch.device("meta"):
            self._build()
        with self._tiles(), counting() as memory:
            self.memory = memory
            for model in (self.model, *self.others.values()):
                _leave_meta(model)
            counted = state_memory(self.model, self.config)
            wrapped = MiniMindForCausalLM._no_split_modules  # what FSDP gathers at once
            layers = [_elements(part) for part in self.model.modules() if type(part).__name__ in wrapped]
            counted.largest_layer, counted.outside_layers = max(layers), _elements(self.model) - sum(layers)
            counted.width = self._dtype.itemsize if self._dtype else 4
            counted.models = {name: _bytes(model.parameters()) for name, model in self.others.items()}
            self._train(counted)
            if self.recipe in ONLINE or getattr(self.config, "lmbda", 0):
                self._generate(counted)
            with torch.no_grad():
                counted.evaluation = memory.most(self._evaluate)
        return counted

    @contextlib.contextmanager
    def _tiles(self) -> Iterator[None]:
        """TRL's head reserves tiles of 32,768 columns. A CPU holds only those that the vocabulary fills."""
        reserved = trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE
        if self.config.device.type == "cpu":
            trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(reserved, self.model_config.vocab_size)
        try:
            yield
        finally:
            trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = reserved

    @property
    def _dtype(self) -> torch.dtype | None:
        """Of the computation, where it is not float32."""
        return torch.bfloat16 if self.config.bf16 else torch.float16 if self.config.fp16 else None

    def _build(self) -> None:
        kind = MiniMindForSequenceClassification if self.recipe == "reward" else MiniMindForCausalLM
        model_config = copy.deepcopy(self.model_config)
        if self.recipe == "reward":
            model_config.num_labels = 1
        base = self.model = kind(model_config).train()
        if self.zero_stage and self._dtype:
            base.to(self._dtype)
        self.others = {}
        if self._has_reference() and not self.lora.use_peft:
            self.others["reference model"] = unpatched_copy(base).eval().requires_grad_(False)
        if self.recipe == "distill":
            self.others["teacher model"] = MiniMindForCausalLM(self.teacher).eval().requires_grad_(False)
        if self.lora.use_peft:
            self.model = get_peft_model(base, lora_config(self.lora, base), low_cpu_mem_usage=True)
        if self.config.activation_checkpointing:
            checkpoint_activations(self.model, self.config)
            if self.lora.use_peft:
                self.model.enable_input_require_grads()
        for model in (base, *self.others.values()):
            self._add_head(model)
        if self.recipe == "ppo":
            self._add_critic(base)

    def _has_reference(self) -> bool:
        if self.recipe == "dpo":
            return not self.config.precompute_ref_log_probs
        return self.recipe in ONLINE and bool(self.config.beta)

    def _add_head(self, model: nn.Module) -> None:
        """The head that the recipe's trainer gives its models; reward models and distillation keep their own."""
        if self.recipe in ("reward", "distill"):
            return
        temperature = getattr(self.config, "temperature", 1.0)
        if self.recipe == "dpo":
            add_fused_lm_head(model)
        elif self.recipe in ONLINE:
            full = self.config.cast_lm_head_to_fp32
            add_fused_lm_head(
                model, temperature=temperature, cast_lm_head_to_fp32=full, outputs=("log_probs", "entropy")
            )
        else:
            add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        if getattr(self.config, "cast_lm_head_to_fp32", False) or (self.recipe == "dpo" and not self.zero_stage):
            return
        add_learned_positions_head(
            model,
            temperature,
            self.recipe == "dpo",
            any_vocabulary=self.zero_stage == 3,
            entropy_gradient=self._has_entropy_bonus(),
        )

    def _has_entropy_bonus(self) -> bool:
        return self.recipe in ONLINE and (self.config.entropy_coef != 0 or self.config.use_adaptive_entropy)

    def _add_critic(self, policy: nn.Module) -> None:
        name = self.config.critic_model
        config = critic_config(name) if name else copy.deepcopy(self.model_config)
        config.num_labels = 1
        self.critic = MiniMindForTokenClassification(config).to(next(policy.parameters()).dtype)
        attach_critic(policy, self.critic)

    def _train(self, counted: Memory) -> None:
        rows = self.config.per_device_train_batch_size
        config = self.config
        dropped = [
            part.register_post_accumulate_grad_hook(lambda part: setattr(part, "grad", None))
            for part in self.model.parameters()
            if part.requires_grad
        ]
        counted.activations = self.memory.most(lambda: self._body(rows).backward())
        whole = max(counted.activations, self.memory.most(lambda: self._loss(rows).backward()))
        counted.head = whole - counted.activations
        for hook in dropped:
            hook.remove()
        accumulated = config.gradient_accumulation_steps > 1
        passes = [lambda: self._loss(rows).backward()] * (1 + accumulated)
        counted.gradients_then = max(0, self.memory.most(lambda: [run() for run in passes]) - whole)
        self.model.zero_grad()

    def _inputs(self, rows: int, length: int) -> dict[str, Tensor]:
        ids = torch.zeros(rows, length, dtype=torch.long)
        if getattr(self.config, "packing", False):  # see PackedRowsCollator: positions in place of a mask
            return {"input_ids": ids, "position_ids": torch.zeros_like(ids)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _batch(self, rows: int) -> dict[str, Tensor]:
        answer = self.config.max_completion_length if self.recipe in ONLINE else 0
        rows = 2 * rows if self.recipe in PAIRS else rows
        self.memory.learned = rows * answer if self.recipe in ONLINE else None
        return self._inputs(rows, self.length + answer)

    def _forward(self, model: nn.Module, **inputs):
        """As accelerate wraps a model's forward: autocast, and what comes out in float32."""
        with self._autocast() as autocast:
            forward = model if autocast is None else convert_outputs_to_fp32(model.forward)
            return forward(**inputs)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self._dtype is None or self.zero_stage:
            return contextlib.nullcontext()
        return torch.autocast("cpu", self._dtype)

    def _body(self, rows: int) -> Tensor:
        body = base_model(self.model)
        models = [body.model, self.critic.model] if self.recipe == "ppo" else [body.model]
        with self._autocast():
            outs = [model(**self._batch(rows), use_cache=False).last_hidden_state for model in models]
        return sum(out.float().sum() for out in outs)

    def _loss(self, rows: int) -> Tensor:
        batch = self._batch(rows)
        if self.recipe == "reward":
            return self._forward(self.model, **batch, use_cache=False).logits.sum()
        if self.recipe == "distill":
            return self._divergence(batch)
        labels = {"labels": batch["input_ids"], "fused_lm_head": True}
        outputs = self._forward(self.model, **batch, **labels)
        if self.recipe == "dpo" and self._has_reference():
            with torch.no_grad(), self.model.disable_adapter() if self.lora.use_peft else contextlib.nullcontext():
                self._forward(self.others.get("reference model", self.model), **batch, **labels)
        loss = outputs.log_probs.sum()
        if self._has_entropy_bonus():
            loss = loss - outputs.entropy.sum()
        if outputs.aux_loss is not None:
            loss = loss + outputs.aux_loss
        if self.recipe == "ppo" and torch.is_grad_enabled():
            loss = loss + self.critic.values.sum()
            self.critic.values = None
        return loss

    def _divergence(self, batch: dict[str, Tensor]) -> Tensor:
        from ..trainers.gkd_trainer import GKDTrainer

        student = self._forward(self.model, **batch)
        with torch.no_grad():
            teacher = self._forward(self.others["teacher model"], **batch)
        logits = student.logits[:, :-1], teacher.logits[:, :-1]
        return GKDTrainer.generalized_jsd_loss(*logits, batch["input_ids"][:, 1:], beta=self.config.beta)

    @torch.no_grad()
    def _generate(self, counted: Memory) -> None:
        config, prompt = self.config, self.length
        if self.recipe in ONLINE:
            answer = config.max_completion_length
            rows = max(
                config.per_device_train_batch_size * config.steps_per_generation, config.per_device_eval_batch_size
            )
        else:
            answer, rows = config.max_new_tokens, config.per_device_train_batch_size
        self.model.eval()
        counted.generation = self.memory.most(lambda: self._answer(rows, prompt, answer, counted))
        self.model.train()
        counted.generation -= counted.kv_cache

    def _answer(self, rows: int, prompt: int, answer: int, counted: Memory) -> None:
        """The first step of generation, which reads the prompts, and the last, with the longest cache."""
        cache = DynamicCache(config=self.model_config)
        inputs = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        self._next(**self._inputs(rows, prompt), **inputs)
        for layer in cache.layers:
            wanted = (rows, layer.keys.shape[1], prompt + answer - 2, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.new_empty(wanted), layer.values.new_empty(wanted)
        mask = torch.ones(rows, prompt + answer - 1, dtype=torch.long)
        ids = torch.zeros(rows, 1, dtype=torch.long)
        self._next(input_ids=ids, attention_mask=mask, **inputs)
        counted.kv_cache = _bytes(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))

    def _next(self, **inputs) -> None:
        scores = self._forward(self.model, **inputs).logits[:, -1].float()
        torch.multinomial(scores.softmax(-1), 1)

    def _evaluate(self) -> None:
        rows = self.config.per_device_eval_batch_size
        if self.recipe in PAIRS:
            self._loss(rows)
        elif self.recipe not in ONLINE:  # see held_out.score_rows: whole logits, and those of the targets
            logits = self._forward(self.model, **self._inputs(rows, self.length), use_cache=False).logits
            logits[:, :-1].reshape(-1, logits.shape[-1])


def _leave_meta(model: nn.Module) -> None:
    """Put parameters and buffers without data on the CPU; tied ones stay tied.

    Models are made on the meta device first, because neither PEFT nor `.to` can move parameters of a FakeTensorMode.
    """
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    moved[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                tensors[name] = moved[id(tensor)]


def _elements(module: nn.Module) -> int:
    return sum(part.numel() for part in module.parameters())
