"""Prepared mixtures: whole or not there, reused only while nothing that they were made from has changed."""

import json
import time

import pytest
import yaml

from minimind_trl.data import LOCK, DatasetMixer, MixtureError, load_or_prepare, load_prepared, prepare
from minimind_trl.data.row_renderer import TOKEN_COLUMNS
from minimind_trl.tokenization import tiny_tokenizer
from tests.data.test_mixer import chat, texts
from tests.forking import says, start


@pytest.fixture
def mixture(write):
    return write({"a": texts("a", 90), "b": texts("b", 30)}, ratios={"a": 0.75, "b": 0.25})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "prepared" / "mixture"


def mixer_of(path):
    return DatasetMixer.from_yaml(path)


def test_what_was_written_is_what_is_read(write, folder):
    called = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    row = {"messages": [{"role": "user", "content": "q"}, called], "tools": [{"name": "f"}]}
    rows = [*(chat(f"q {i}", skill="3") for i in range(60)), row]
    path = write({"a": rows}, phase="sft", options={"keep_columns": ["skill"]})
    built = prepare(mixer_of(path), folder)
    read = load_prepared(folder)
    for split in ("train", "validation"):
        assert list(read[split]) == list(built[split])
        assert read[split].features == built[split].features
    lines = [json.loads(line) for line in (folder / "sft_mixture_train.jsonl").read_text().splitlines()]
    assert {"role": "user", "content": "q 7"} in [line["messages"][0] for line in lines]


@pytest.mark.parametrize(
    ("phase", "rows"), [("sft", "chats"), ("midtrain", "chats"), ("pretrain", "texts"), ("dpo", "pairs")]
)
def test_its_rows_are_read_with_the_tokens_of_the_build(write, folder, phase, rows):
    asked = [[{"role": "user", "content": f"天气 <|im_end|> {i}"}] for i in range(60)]
    chats = [
        {"messages": [*turns, {"role": "assistant", "content": "yes", "reasoning_content": "hm"}]} for turns in asked
    ]
    chats[5]["messages"] += [asked[7][0], {"role": "assistant", "content": "no", "train": False}]
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    rows = {
        "chats": chats,
        "texts": texts("a", 60),
        "pairs": [{"prompt": turns, "chosen": answers[0], "rejected": answers[1]} for turns in asked],
    }[rows]
    path, tokenizer = write({"a": rows}, phase=phase), tiny_tokenizer()
    built = load_or_prepare(mixer_of(path), folder, tokenizer, keep_tokens=True)
    read = load_or_prepare(mixer_of(path), folder, tokenizer, keep_tokens=True)
    names = [name for name in TOKEN_COLUMNS if name in built["train"].column_names]
    assert names and set(read["train"].column_names) == set(built["train"].column_names)
    for split in ("train", "validation"):
        assert list(read[split]) == list(built[split])
        assert read[split].features == built[split].features
        assert list(load_prepared(folder)[split]) == list(built[split].remove_columns(names))


def test_the_lock_tells_where_every_row_went(mixture, folder):
    mixer = mixer_of(mixture)
    prepare(mixer, folder)
    lock = json.loads((folder / LOCK).read_text())
    assert lock["seed"] == 42 and lock["phase"] == "pretrain"
    for source in lock["sources"]:
        assert len(source["files"][0]["digest"]) == 64 and source["files"][0]["name"] == f"{source['name']}.jsonl"
        used = source["train"]["rows"] + source["validation"]["rows"]
        assert source["rows_in"] == used + sum(source["dropped"].values())
    assert sorted(path.name for path in folder.iterdir()) == [
        LOCK,
        "pretrain_mixture_train.jsonl",
        "pretrain_mixture_validation.jsonl",
    ]


def test_it_is_reused_while_nothing_has_changed(mixture, folder, monkeypatch):
    first = load_or_prepare(mixer_of(mixture), folder)
    monkeypatch.setattr(DatasetMixer, "build", lambda *_: pytest.fail("built again"))
    mixer = mixer_of(mixture)
    again = load_or_prepare(mixer, folder)
    assert list(again["train"]) == list(first["train"])
    assert "a: " in mixer.describe()


def edit(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: edit(path, lambda m: m.update(seed=7)), "mixture file changed"),
        (lambda path: (path.parent / "a.jsonl").open("a").write('{"text": "new"}\n'), "data of a changed"),
        (lambda path: edit(path, lambda m: m["metadata"].update(description="new words")), None),
    ],
    ids=["seed", "data", "description"],
)
def test_it_is_rebuilt_and_says_why(mixture, folder, capsys, change, told):
    load_or_prepare(mixer_of(mixture), folder)
    capsys.readouterr()
    change(mixture)
    load_or_prepare(mixer_of(mixture), folder)
    message = capsys.readouterr().err
    assert (f"is rebuilt: {told}" in message) if told else message == ""


def test_another_tokenizer_is_a_change(mixture, folder, capsys):
    load_or_prepare(mixer_of(mixture), folder)
    load_or_prepare(mixer_of(mixture), folder, tiny_tokenizer())
    assert "is rebuilt: tokenizer changed" in capsys.readouterr().err


@pytest.mark.parametrize("cut", ["train", "lock", "both gone"])
def test_what_was_cut_off_is_noticed(mixture, folder, capsys, cut):
    prepare(mixer_of(mixture), folder)
    file = folder / (LOCK if cut == "lock" else "pretrain_mixture_train.jsonl")
    file.write_bytes(file.read_bytes()[:-40])
    if cut == "both gone":
        file.unlink()
    with pytest.raises(MixtureError, match=file.name):
        load_prepared(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda lock: lock.update(seed=7),
        lambda lock: lock["made_from"].clear(),
        lambda lock: lock["prepared"].update(train={}),
        lambda lock: lock.update(columns="text"),
        lambda lock: lock.pop("sources"),
        lambda lock: lock.pop("lock_sha256"),
    ],
    ids=["value", "made_from", "files", "columns", "sources", "digest"],
)
def test_a_lock_edited_by_hand_is_told_and_nothing_is_built_over_it(mixture, folder, change):
    prepare(mixer_of(mixture), folder)
    lock = json.loads((folder / LOCK).read_text())
    change(lock)
    (folder / LOCK).write_text(json.dumps(lock))
    before = contents(folder)
    for use in (load_prepared, lambda folder: load_or_prepare(mixer_of(mixture), folder)):
        with pytest.raises(
            MixtureError, match=rf"{LOCK}: not as it was written \(edited\?\); undo that, or remove {folder}"
        ):
            use(folder)
    assert contents(folder) == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_of_something_else_is_left_alone(mixture, folder):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(MixtureError, match=f"no {LOCK}: not a prepared mixture"):
        load_or_prepare(mixer_of(mixture), folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_build_that_fails_leaves_the_last_one(mixture, folder, monkeypatch):
    load_or_prepare(mixer_of(mixture), folder)
    before = contents(folder)
    edit(mixture, lambda m: m.update(seed=7))
    monkeypatch.setattr("minimind_trl.data.prepared.write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(MixtureError, match="cannot be written"):
        load_or_prepare(mixer_of(mixture), folder)
    assert contents(folder) == before
    assert not list(folder.parent.glob(".*tmp"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_split_into_one_file(mixture, tmp_path, split):
    written = mixer_of(mixture).prepare_dataset(tmp_path / "out", split)
    assert written == tmp_path / "out" / f"pretrain_mixture_{split}.jsonl"
    named = mixer_of(mixture).prepare_dataset(tmp_path / "mine.jsonl", split)
    assert named.read_bytes() == written.read_bytes()
    assert len(written.read_text().splitlines()) == len(mixer_of(mixture).build()[split])


JOB = """
import os, sys, time
from pathlib import Path
from minimind_trl.data import DatasetMixer, load_or_prepare
from minimind_trl.data import prepared
write = prepared.write_split
def written(*arguments):
    result = write(*arguments)
    print("wrote", flush=True)
    while "STUCK" in os.environ:
        time.sleep(0.1)
    return result
prepared.write_split = written
print("started", flush=True)
data = load_or_prepare(DatasetMixer.from_yaml(sys.argv[1]), Path(sys.argv[2]))
print(len(data["train"]), data["train"]["text"][0])
"""


@pytest.fixture
def job(mixture, folder, tmp_path):
    """Starts a process that builds the mixture; gives it and the file that it prints to."""
    script = tmp_path / "job.py"
    script.write_text(JOB)

    def begin(name: str, **environment):
        log = tmp_path / name
        return start(script, [mixture, folder], stdout=log, environment=environment), log

    return begin


def test_of_two_jobs_one_builds_and_the_other_waits(job):
    jobs = [job(name) for name in ("first", "second")]
    for process, log in jobs:
        process.join(60)
        assert process.exitcode == 0, log.read_text()
    outputs = [log.read_text() for _, log in jobs]
    assert sorted(output.count("wrote") for output in outputs) == [0, 2]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]


def test_a_job_goes_on_when_the_one_that_it_waits_for_is_killed(job, mixture, folder):
    first, log = job("first", STUCK="1")
    assert says(log, "wrote")
    second, log = job("second")
    assert says(log, "started")
    time.sleep(1)
    assert second.is_alive() and not folder.exists() and list(folder.parent.glob(".*.tmp"))
    first.kill()
    second.join(60)
    assert log.read_text().count("wrote") == 2 and second.exitcode == 0
    assert len(load_prepared(folder)["train"]) == len(mixer_of(mixture).build()["train"])
    assert sorted(path.name for path in folder.parent.iterdir()) == [f".{folder.name}.lock", folder.name]


def test_what_a_kill_between_two_renames_leaves_is_built_again(mixture, folder):
    prepare(mixer_of(mixture), folder)
    before = contents(folder)
    folder.rename(folder.with_name(f".{folder.name}.1.old"))
    load_or_prepare(mixer_of(mixture), folder)
    assert contents(folder) == before and not list(folder.parent.glob(".*.old"))
