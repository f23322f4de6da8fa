"""Runs recipes one after the other, as `python recipes/X.py OPTIONS` each, in the processes that it is started in.

Argument: a JSON file, a list of `[recipe, option, ...]`. The first that fails ends it, and with it all processes.
"""

import json
import runpy
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    # Each recipe ends the processes' group. The next one's would look for the others at the addresses of this one's.
    torch.distributed.destroy_process_group = lambda *args, **kwargs: None
    for recipe, *options in json.loads(Path(sys.argv[1]).read_text()):
        sys.argv = [f"recipes/{recipe}.py", *options]
        runpy.run_path(sys.argv[0], run_name="__main__")
