"""`minimind-trl tokenizer train`."""

import argparse

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from minimind_trl.commands.tokenizer import add_cli
from minimind_trl.tokenization import MIN_VOCAB_SIZE, TokenizerTrainingError, bytes_per_token, train_tokenizer
from tests.tokenization.conftest import TEXTS


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_cli(parser.add_subparsers(required=True))
    args = parser.parse_args(["tokenizer", "train", *map(str, arguments)])
    args.run(args)


def test_the_help_names_the_smallest_vocabulary(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    assert f"at least {MIN_VOCAB_SIZE}" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def stories(tmp_path):
    Dataset.from_dict({"text": TEXTS}).to_json(tmp_path / "stories.jsonl")
    return tmp_path / "stories.jsonl"


def test_the_command_trains_and_reports(stories, tmp_path, capsys, trained):
    run(stories, "--vocab_size", 400, "--output_dir", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "vocabulary: 400 tokens" in printed
    assert f"bytes per token: {bytes_per_token(trained, TEXTS):.2f}" in printed
    assert f"saved to: {tmp_path / 'out'}" in printed
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == trained.get_vocab()


def test_the_command_reads_only_so_many_rows_of_each_file(stories, tmp_path):
    run(stories, stories, "--vocab_size", 340, "--output_dir", tmp_path / "out", "--max_rows", 1)
    expected = train_tokenizer([TEXTS[0], TEXTS[0]], 340)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == expected.get_vocab()


def test_the_command_never_overwrites(stories, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(TokenizerTrainingError, match="exists and is not an empty folder: choose another --output_dir"):
        run(tmp_path / "not even read", "--vocab_size", 400, "--output_dir", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    run(stories, "--vocab_size", 300, "--output_dir", tmp_path / "empty")
    assert (tmp_path / "empty" / "tokenizer.json").is_file()


def test_a_failed_command_leaves_nothing_behind(stories, tmp_path):
    for options in (["--vocab_size", 6400], ["--vocab_size", 300, "--max_rows", 0]):
        with pytest.raises(TokenizerTrainingError):
            run(stories, "--output_dir", tmp_path / "new" / "out", *options)
    assert not (tmp_path / "new").exists()
