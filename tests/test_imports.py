"""Functions given as `module:function`: user functions are accepted, Python's own are refused."""

import sys

import pytest

from minimind_trl.errors import InputError
from minimind_trl.imports import import_function, refuse_foreign

OWN = """
import functools, os
from os import system as renamed

def keep(row, least=1):
    return len(row["text"]) >= least

strict = functools.partial(keep, least=9)

class Keeper:
    def __call__(self, row):
        return True

keeper = Keeper()
shadow = functools.partial(os.system)
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_functions_for_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import_function.cache_clear()
    yield
    sys.modules.pop("own_functions_for_test", None)
    import_function.cache_clear()


@pytest.mark.parametrize("name", ["keep", "strict", "keeper", "Keeper"])
def test_user_functions_are_accepted(name):
    refuse_foreign(f"own_functions_for_test:{name}", "filter", "called as f(row)")


@pytest.mark.parametrize(
    "name",
    [
        *("os:system", "builtins:exec", "builtins:print", "subprocess:run", "subprocess:getoutput", "shutil:rmtree"),
        *("pickle:loads", "operator:truth", "own_functions_for_test:renamed", "own_functions_for_test:shadow"),
    ],
)
def test_functions_of_python_itself_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is part of Python .*, not a filter: called as f"):
        refuse_foreign(name, "filter", "called as f(row)")


def test_a_function_without_a_signature_is_refused():
    with pytest.raises(InputError, match="numpy:fromstring has no signature"):
        refuse_foreign("numpy:fromstring", "reward", "called as f(prompts)")
