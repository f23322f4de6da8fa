"""`minimind-trl data`: check, build, show, explain."""

import pytest

from minimind_trl.cli import main
from minimind_trl.data import LOCK
from tests.conftest import REPOSITORY
from tests.data.test_mixer import chat, texts


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check(write, capsys):
    path = write({"a": texts("a", 90)})
    code, out, err = run(capsys, "check", path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "a: 1 file(s), schema text, first 90 rows looked at",
        f"{path}: valid, phase pretrain; nothing was built",
    ]


def test_build_and_build_again(write, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write({"a": texts("a", 90)})
    for _ in range(2):
        code, out, _ = run(capsys, "build", path)
        assert code == 0
        assert out.splitlines()[-1].startswith("prepared/pretrain_mixture: ")
    assert (tmp_path / "prepared" / "pretrain_mixture" / LOCK).is_file()


def test_show_prints_the_table_and_marks_what_is_trained(write, capsys):
    rows = [chat(f"q {i}", "yes") for i in range(90)]
    code, out, _ = run(capsys, "show", write({"a": rows}, phase="sft"), "--tokenizer", "tiny")
    assert code == 0
    assert "sft mixture" in out and "100.0%" in out and "a: 90 rows in" in out
    assert "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nyes<|im_end|>⟧" in out


def test_show_without_a_tokenizer(capsys):
    code, out, _ = run(capsys, "show", REPOSITORY / "data_configs/tiny/rlaif.yaml")
    assert code == 0 and "with --tokenizer the examples are rendered" in out


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (1, "mixture: "),
        (91, "convert: dropped: empty text"),
        (92, "filter: dropped: length: over 20 characters"),
        (93, "mixture: dropped: duplicate"),
    ],
)
def test_explain_follows_a_row_to_its_end(write, capsys, row, told):
    rows = [*texts("a", 90), {"text": ""}, {"text": "x" * 50}, {"text": "a 5"}]
    path = write({"a": rows}, options={"filters": [{"type": "length", "max_length": 20}]})
    code, out, _ = run(capsys, "explain", path, "--row", row, "--tokenizer", "tiny")
    assert code == 0
    assert out.startswith(f"row: {path.parent / 'a.jsonl'}, line {row}: ")
    assert told in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "400"], "no row at line 400 (the last is 90)"),
        (["--row", "1", "--source", "aa"], "no source 'aa'; did you mean 'a'?"),
        (["--row", "1", "--file", "2"], "--file 2: a has 1 file(s)"),
        (["--row", "1", "--tokenizer", "/nowhere"], "--tokenizer /nowhere: no such file or directory"),
    ],
)
def test_explain_names_what_is_not_there(write, capsys, arguments, message):
    code, _, err = run(capsys, "explain", write({"a": texts("a", 90)}), *arguments)
    assert code == 2 and message in err
