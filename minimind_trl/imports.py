"""Functions of the user's own, named in YAML or on a command line."""

import functools
import importlib
from collections.abc import Callable

from .errors import InputError, nearest


@functools.cache
def imported(name: str) -> Callable:
    """The function `module:function`.

    Raises:
        InputError: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = nearest(function_name, [key for key, value in vars(module).items() if callable(value)])
        raise InputError(f"{module_name} has no function {function_name!r}{hint}")
    return function
