"""Work for several processes on this machine."""

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

_function: Callable[[Any], Any]


def default_processes() -> int:
    """The cores that this process may use, divided among the processes of a run on this machine; 1 except on Linux."""
    if sys.platform != "linux":  # elsewhere a forked process may crash
        return 1
    if multiprocessing.current_process().daemon:  # it may have no children
        return 1
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def in_order(function: Callable[[Any], Any], items: Sequence[Any], processes: int) -> Iterator[Any]:
    """The results for all items, in their order; in this process if one process is enough.

    Raises:
        whatever the function raises, for the first item for which it does.
    """
    if min(processes, len(items)) < 2 or multiprocessing.current_process().daemon:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")  # so that the function need not be pickled
    with ProcessPoolExecutor(min(processes, len(items)), context, _begin, (function,)) as executor:
        try:
            yield from executor.map(_call, items)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    gc.freeze()  # a collection would visit, and so copy, what the parent has in memory
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of the parent, which a fork does not have


def _call(item: Any) -> Any:
    return _function(item)
