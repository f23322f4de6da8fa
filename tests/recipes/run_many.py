"""Runs recipes one after the other in one process, as `python recipes/x.py` each, for tests of input that they refuse.

Argument: a JSON file, a list of `{"recipe": ..., "options": [...]}`. Prints a JSON list of `{"code", "out", "err"}`.
"""

import contextlib
import io
import json
import runpy
import sys
import traceback
import warnings
from pathlib import Path


def run(recipe: str, options: list[str]) -> dict:
    sys.argv = [f"recipes/{recipe}.py", *options]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
            code = 1
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps([run(**case) for case in json.loads(Path(sys.argv[1]).read_text())]))
