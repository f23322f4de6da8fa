"""Imports at run time: a package's names on first use, and functions that YAML or the command line names."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InputError, described, nearest


def lazy_names(package: str, homes: dict[str, list[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that imports its modules on first use (PEP 562).

    Args:
        package: the package's `__name__`.
        homes: the public names by the module of the package that defines them.
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
    """Let modules of a folder be imported inside the block, after those of `sys.path`, which is left as it was."""
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
def imported(name: str, folder: Path | None = None) -> Callable:
    """The function `module:function`.

    Args:
        folder: where the module may be, beside the places in `sys.path`.

    Raises:
        InputError: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        with import_folder(folder):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` may end the program
        raise InputError(f"cannot import {module_name!r}: {described(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = nearest(function_name, [key for key, value in vars(module).items() if callable(value)])
        raise InputError(f"{module_name} has no function {function_name!r}{hint}")
    return function


def refuse_foreign(name: str, what: str, wanted: str, folder: Path | None = None) -> None:
    """Refuse a `module:function` that was not written to be called here, such as `os:system`.

    Args:
        what: that it is meant to be, for the message.
        wanted: how such a function is called, for the message.
        folder: as of `imported`.

    Raises:
        InputError: it cannot be imported, comes from Python itself, or does not tell its parameters.
    """
    function = imported(name, folder)
    inner = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
    home = (getattr(inner, "__module__", None) or name).partition(".")[0]
    if home in sys.stdlib_module_names:
        raise InputError(f"{name} is a function of Python's own ({home}), no {what}: {wanted}")
    try:
        inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} does not tell its parameters, so that it is no {what}: {wanted}") from error
