"""Every private name of another library that this package calls or overrides, and the check that it is still there.

The rest of the package uses public names only: a section below gives each private one a public name, as a mixin whose
methods a trainer overrides, a property, or a function. `moved()` compares the whole list with the installed libraries;
`tests/test_internals.py` runs it, so that an upgrade reports in plain lines what has moved. Exempt are
`modeling_minimind.py` and `configuration_minimind.py`: they travel with a checkpoint, and use only what transformers
documents for models.

Nothing heavy is imported at the top: any part of the package may import this module.
"""

import importlib
import importlib.metadata
import inspect
import sys
from dataclasses import dataclass

SEEN_IN = {"accelerate": "1.15.0", "datasets": "5.2.0", "transformers": "5.23.0", "trl": "1.16.0"}
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

ENGINES: tuple[PrivateName, ...] = (PrivateName("accelerate.utils.other", "is_deepspeed_available"),)


def unwrap_without_importing_deepspeed() -> None:
    """Keep accelerate from importing DeepSpeed, wherever it is installed, to take a model out of its wrapper.

    That import prints and takes seconds. A model can only be in DeepSpeed's wrapper once DeepSpeed has been imported.
    """
    importlib.import_module("accelerate.utils.other").is_deepspeed_available = lambda: "deepspeed" in sys.modules


# --- transformers' Trainer --------------------------------------------------------------------------------------------

TRANSFORMERS: tuple[PrivateName, ...] = ()

# --- TRL --------------------------------------------------------------------------------------------------------------

TRL: tuple[PrivateName, ...] = ()
