"""Files to converted rows: what stays in memory after a build, and which code a cached row depends on."""

import ast
import gc
import weakref
from pathlib import Path

import minimind_trl
from minimind_trl.data import DatasetMixer, mixer, reader
from tests.data.test_mixer import texts

PACKAGE = Path(minimind_trl.__file__).parent
# What they import decides what becomes of a row: conversion, choice, order.
ON_THE_PATH = ("rows", "reader", "selection", "mixer", "streaming")


def imports_of(file: Path) -> set[Path]:
    """The files of the package that a file imports, those of a function's body too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            home = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        elif (node.module or "").startswith("minimind_trl."):
            home = PACKAGE.joinpath(*node.module.split(".")[1:])
        else:
            continue
        candidates = [home.with_suffix(".py"), *(home / f"{alias.name}.py" for alias in node.names)]
        found |= {candidate for candidate in candidates if candidate.is_file()}
        assert not (home.is_dir() and home.name == "tokenization"), f"{file}: name the module of tokenization"
    return found


def test_all_code_that_decides_about_rows_is_in_the_key_of_the_cache():
    path, waiting = set(), {PACKAGE / "data" / f"{name}.py" for name in ON_THE_PATH}
    while waiting:
        path |= waiting
        waiting = set().union(*map(imports_of, waiting)) - path
    rooms = {file for file in path if file.parent.name in ("data", "tokenization")}
    known = set(reader.converter_files())
    indifferent = {PACKAGE / "data" / f"{name}.py" for name in ("hub", "object_storage", "report", "tables", "workers")}
    assert rooms - known == indifferent
    assert len(rooms) > 15


def test_a_new_file_is_in_the_key_of_the_cache(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "new.py").touch()
    monkeypatch.setattr(reader, "__file__", str(folder / "reader.py"))
    assert folder / "new.py" in reader.converter_files()


def test_a_mixer_keeps_no_rows_after_the_build(write, monkeypatch):
    made = []

    def spy(given, make=mixer.make_mix):
        mix = make(given)
        made.extend(map(weakref.ref, (mix, mix.pool, *mix.sources, given)))
        return mix

    monkeypatch.setattr(mixer, "make_mix", spy)
    ours = DatasetMixer.from_yaml(write({"a": texts("a", 90), "b": texts("b", 90)}))
    data = ours.build()
    gc.collect()
    assert len(made) == 5 and not any(reference() for reference in made)
    assert len(data["train"]) == ours.lock()["train"]["rows"]
