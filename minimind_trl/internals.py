"""Every private name of another library that this package calls or overrides, and the check that it is still there.

The rest of the package uses public names only: a section below gives each private one a public name, as a mixin whose
methods a trainer overrides, a property, or a function. `moved()` compares the whole list with the installed libraries;
`tests/test_internals.py` runs it, so that an upgrade reports in plain lines what has moved. Exempt are
`modeling_minimind.py` and `configuration_minimind.py`: they travel with a checkpoint, and use only what transformers
documents for models.

Nothing heavy is imported at the top: any part of the package may import this module.
"""

import contextlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SEEN_IN = {"accelerate": "1.15.0", "datasets": "5.2.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"}
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
    missing = set(entry.parameters) - set(inspect.signature(getattr(owner, entry.name)).parameters)
    return f"{where}: no parameter {', '.join(sorted(missing))}" if missing else None


def _assigns(owner: type, name: str) -> bool:
    return any(f"self.{name}" in inspect.getsource(base) for base in owner.__mro__ if base is not object)


# --- datasets ---------------------------------------------------------------------------------------------------------

DATASETS: tuple[PrivateName, ...] = ()

# --- torch and accelerate ---------------------------------------------------------------------------------------------

ENGINES: tuple[PrivateName, ...] = (
    PrivateName("torch._subclasses.fake_tensor", "FakeTensor"),
    PrivateName("torch._subclasses.fake_tensor", "FakeTensorMode", ("allow_non_fake_inputs",)),
    PrivateName("torch.utils._python_dispatch", "TorchDispatchMode"),
    PrivateName("torch.utils._pytree", "tree_iter"),
    PrivateName("torch.nn:Module", "_apply", ("fn", "recurse")),
    PrivateName("transformers:TrainingArguments", "_setup_devices"),
    PrivateName("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE"),
)


def fake_tensor_tools() -> tuple:
    """torch's FakeTensor, FakeTensorMode, TorchDispatchMode and tree_iter, all of private modules."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    return FakeTensor, FakeTensorMode, TorchDispatchMode, tree_iter


@contextlib.contextmanager
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


@contextlib.contextmanager
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

TRANSFORMERS: tuple[PrivateName, ...] = ()

# --- TRL --------------------------------------------------------------------------------------------------------------

TRL: tuple[PrivateName, ...] = ()
