"""Imports at run time: lazy package names, and functions that YAML or the command line names."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InputError, describe, nearest


def lazy_names(package: str, homes: dict[str, list[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a package that imports its modules on first use (PEP 562).

    Args:
        package: the package's `__name__`.
        homes: public names of each module of the package.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in homes:
            return importlib.import_module(f".{name}", package)
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{home_of[name]}", package), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *home_of, *homes})


@contextmanager
def import_folder(folder: Path | None) -> Iterator[None]:
    """Append a folder to `sys.path` inside the block."""
    path = str(folder)
    if folder is None or path in sys.path:
        yield
        return
    sys.path.append(path)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(path)


@functools.cache
def import_function(name: str, folder: Path | None = None) -> Callable:
    """Import the function that `module:function` names.

    Args:
        folder: folder to search for the module, after `sys.path`.

    Raises:
        InputError: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        with import_folder(folder):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` may call sys.exit
        raise InputError(f"cannot import {module_name!r}: {describe(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = nearest(function_name, [key for key, value in vars(module).items() if callable(value)])
        raise InputError(f"{module_name} has no function {function_name!r}{hint}")
    return function


def refuse_foreign(name: str, what: str, wanted: str, folder: Path | None = None) -> None:
    """Refuse a `module:function` that was not written for this purpose, such as `os:system`.

    Args:
        what: its purpose, for the message.
        wanted: how such a function is called, for the message.
        folder: as for `import_function`.

    Raises:
        InputError: it cannot be imported, is part of Python, or has no signature.
    """
    function = import_function(name, folder)
    inner = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
    home = (getattr(inner, "__module__", None) or name).partition(".")[0]
    if home in sys.stdlib_module_names:
        raise InputError(f"{name} is part of Python ({home}), not a {what}: {wanted}")
    try:
        inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} has no signature, so it cannot be used as a {what}: {wanted}") from error
