"""Every bad config and bad file: one message that names the place, exit code 2, and nothing written."""

import errno
import gzip
import json
import os
from pathlib import Path

import pytest
import yaml

from minimind_trl.cli import main
from minimind_trl.data import LOCK, load_prepared
from minimind_trl.data.mixer import DatasetMixer
from tests.forking import run
from tests.test_yaml_files import BOMBS

CONFIGS = Path(__file__).parent / "bad_configs"
ROWS = Path(__file__).parent / "bad_rows"

# What the message holds, in this order, for each file of bad_configs/.
BAD_CONFIGS = {
    "bad_bounds": ["line 6: datasets.0.filters.0: min_length 9 is over max_length 3"],
    "bad_regex": ["line 6: datasets.0.filters.0.pattern: not a regular expression", "(once"],
    "conversations_without_tokenizer": ["chats.jsonl, line 1", "datasets.stories", "chat template", "give a tokenizer"],
    "duplicate_key": ["line 6: datasets.0.mix_ratio: given twice (first in line 5)"],
    "empty": ["empty.yaml: the file is empty; a mixture file is a mapping with 'metadata' and 'datasets'"],
    "emptied_by_a_filter": ["datasets.stories: no row is left (40 length: under 1000 characters)"],
    "evaluation_field_missing": ["exam", "good.jsonl, line 1", "'question'", "columns: text"],
    "evaluation_set_missing": ["exam: no such file", "exam.jsonl"],
    "fields_for_unknown_column": ["line 5: datasets.0.fields.txt:", "reads 'txt'; did you mean 'text'?"],
    "fields_to_missing_column": ["good.jsonl, line 1", "no column 'txet'", "did you mean 'text'?"],
    "filter_without_type": ["line 6: datasets.0.filters.0.type: a filter needs a type (known: length,"],
    "folder_without_files": ["datasets.stories: no parquet file in"],
    "glob_without_match": ["datasets.stories: no such file", "nothing_*.jsonl"],
    "impossible_date": ["not valid YAML: month must be in 1..12"],
    "keep_columns_missing": ["good.jsonl, line 1", "no column 'licence'", "datasets.stories.keep_columns"],
    "list": ["a mixture file is a mapping with 'metadata' and 'datasets'"],
    "local_without_format": ["datasets.stories", "is a local path: set format"],
    "many_problems": [
        "line 1: metadata.total_tokens: Input should be greater than 0 (found -5)",
        "line 2: datasets: mix_ratio sums to 0.8",
        "line 7: datasets.0.filters.0.minimum: unknown key; known: type, min_length",
        "line 8: datasets.1.name: the name 'stories' is taken by datasets.0",
        "line 8: datasets.1.source: is missing",
        "line 9: datasets.1.sorce: unknown key; did you mean 'source'?",
        "line 12: datasets.1.schema: 'preference' does not fit phase pretrain",
        "line 12: datasets.1.schema: given twice (first in line 11)",
        "line 13: size: give exactly one of rows and tokens",
        "line 14: dedup.method: Input should be 'exact', 'near' or 'none'; did you mean 'near'?",
    ],
    "missing_file": ["datasets.stories: no such file", "god.jsonl; did you mean 'good.jsonl'?"],
    "missing_sections": ["line 1: datasets: is missing", "line 1: metadata: is missing"],
    "misspelt_filter_key": ["line 7: datasets.0.filters.0.min_lenght: unknown key; did you mean 'min_length'?"],
    "misspelt_key": ["line 5: datasets.0.max_sample: unknown key; did you mean 'max_samples'?"],
    "negative_ratio": ["line 5: datasets.0.mix_ratio: Input should be greater than 0 (found -0.5)"],
    "no_such_function": ["line 6: datasets.0.filters.0", "json has no function 'laods'; did you mean 'loads'?"],
    "no_such_module": ["line 6: datasets.0.filters.0", "cannot import 'no_such_module'"],
    "no_validation_rows": ["the validation split is empty: validation.ratio 0.001"],
    "only_comments": ["only_comments.yaml: the file is empty"],
    "ratio_is_text": ["line 5: datasets.0.mix_ratio: Input should be a valid number (found '0.5')"],
    "ratio_sum_high": ["line 2: datasets: mix_ratio sums to 1.8, not 1; normalised values: stories: 0.5, more: 0.5"],
    "ratio_sum_low": ["line 2: datasets: mix_ratio sums to 0.9", "stories: 0.4444, more: 0.5556"],
    "rows_of_another_phase": ["good.jsonl, line 1: columns text", "'messages' for phase sft", "map them with fields"],
    "schema_of_another_phase": ["line 5: datasets.0.schema: 'preference' does not fit phase sft", "takes messages,"],
    "share_out_of_reach": ["size.rows 500 is out of reach: datasets.", "for a share of 0.5", "the largest size is"],
    "size_in_rows_and_tokens": ["line 5: size: give exactly one of rows and tokens"],
    "splits_of_a_file": ["datasets.stories: splits are a Hub data set's"],
    "stream": [
        "line 1: metadata.total_tokens: a stream's tokens are not known ahead",
        "line 5: datasets.0.max_samples:",
        "line 7: size.tokens:",
        "line 8: dedup:",
    ],
    "tabs": ["line 2: not valid YAML: found character '\\t'"],
    "tokens_out_of_reach": ["size.tokens 1000000 is out of reach: datasets.stories has", "the largest size is"],
    "tokens_without_tokenizer": ["datasets.stories", "a length filter in tokens needs a tokenizer"],
    "two_of_one_name": ["line 4: datasets.1.name: the name 'stories' is taken by datasets.0"],
    "unknown_filter": ["line 7: datasets.0.filters.1.type: unknown filter 'lenght'; did you mean 'length'?"],
    "unknown_format": ["line 5: datasets.0.format:", "did you mean 'jsonl'? (found 'jsonlines')"],
    "unknown_phase": ["line 1: metadata.phase:", "did you mean 'sft'? (found 'stf')"],
    "unknown_top_level_key": ["line 5: validatoin: unknown key; did you mean 'validation'?"],
    "wrong_types": [
        "line 5: datasets.0.mix_ratio: Input should be a valid number (found 'half')",
        "line 6: datasets.0.max_samples: Input should be a valid integer",
        "line 7: datasets.0.filters: Input should be a valid list",
        "line 8: seed: Input should be a valid integer",
        "line 9: streaming: Input should be a valid boolean (found 'yes')",
    ],
}

# The same for each file of bad_rows/, and the phase that it is read for.
BAD_ROWS = {
    "bad_tool_calls.jsonl": ("sft", ["line 1: tool_calls is not JSON"]),
    "blank_lines.jsonl": ("pretrain", ["blank_lines.jsonl: no rows (datasets.rows)"]),
    "broken_array.json": ("pretrain", ["broken_array.json: not JSON (Expecting ',' delimiter at line 4 column 1)"]),
    "broken_line_17.jsonl": ("pretrain", ["line 17: not JSON (Unterminated string starting at column 10)"]),
    "chosen_equals_rejected.jsonl": ("dpo", ["1 of 1 rows cannot be used", "line 1: chosen equals rejected"]),
    "column_twice.csv": ("pretrain", ["line 1: the column 'text' is there twice"]),
    "empty.jsonl": ("pretrain", ["empty.jsonl: no rows (datasets.rows)"]),
    "empty_assistant.jsonl": ("sft", ["1 of 1 rows cannot be used", "line 1: empty assistant message"]),
    "few_fields.csv": ("sft", ["few_fields.csv, line 3: not as many fields as the header has"]),
    "huge_number.jsonl": ("pretrain", ["line 1: not readable JSON", "4300 digits"]),
    "invalid_utf8.jsonl": ("pretrain", ["line 2: not UTF-8 text (byte 0xe9 at position 13)"]),
    "list_row.jsonl": ("pretrain", ["line 2: a row must be an object, found list"]),
    "lone_surrogates.jsonl": ("pretrain", ["line 1: text is not valid Unicode (half of a surrogate pair)"]),
    "missing_column.jsonl": ("pretrain", ["line 1: columns body cannot be turned into 'text' for phase pretrain"]),
    "mixed_schemas.jsonl": (
        "pretrain",
        ["line 11: a row of schema 'messages'", "'text': split the file, or set schema"],
    ),
    "nested_nulls.jsonl": (
        "sft",
        ["line 1: empty user message", "line 2: messages: not a list of objects", "line 3: no messages"],
    ),
    "no_text.jsonl": ("pretrain", ["3 of 4 rows", "line 2: empty text", "line 4: text is no string"]),
    "nul_bytes.jsonl": ("pretrain", ["line 2: not JSON (Invalid control character at column 15)"]),
    "unknown_role.jsonl": ("sft", ["line 1: unknown role 'narrator'"]),
    "wrong_order.jsonl": ("sft", ["line 1: roles in wrong order: user after user"]),
}

DEEP = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
LINE = b'{"text": "Once upon a time"}\n'
# Files that are large or no text: made here.
MADE_FILES = {
    "ten_megabytes.jsonl": (b'{"text": "' + b"once " * 2_000_000 + b'"}\n', ["line 1: over 8 MB of text"]),
    "deep.jsonl": (DEEP, ["deep.jsonl, line 1: JSON nested too deeply"]),
    "no_gzip.jsonl.gz": (LINE, ["no_gzip.jsonl.gz: not a readable jsonl file", "gzip"]),
    "cut_off.jsonl.gz": (gzip.compress(LINE * 999)[:-20], ["cut_off.jsonl.gz: not a readable jsonl file"]),
    "cut_off.parquet": (b"PAR1" + bytes(50), ["cut_off.parquet: not a readable parquet file"]),
    "no_arrow.arrow": (LINE, ["no_arrow.arrow: not a readable arrow file"]),
    "utf16.csv": ("text\nonce\n".encode("utf-16"), ["utf16.csv, after line 0: not UTF-8 text"]),
    "many_fields.csv": (b"text\nonce,upon\n", ["many_fields.csv, line 2: not as many fields as the header has"]),
    "open_quote.csv": (b'text\n"once\nupon\n', ["open_quote.csv, line 3: not CSV (unexpected end of data)"]),
}


@pytest.fixture
def build(tmp_path, capsys):
    """Run `data build` on a mixture file; gives stderr, having checked the exit code and that nothing was written."""
    target = tmp_path / "new" / "prepared"

    def run(config: Path, *options: str, output_dir: Path = target) -> str:
        before = contents(tmp_path)
        code = main(["data", "build", str(config), "--output_dir", str(output_dir), *options])
        assert code == 2
        assert contents(tmp_path) == before
        message = capsys.readouterr().err
        assert message.splitlines()[-1] and "Traceback" not in message
        return message

    return run


@pytest.fixture
def mixture(tmp_path):
    """Write a mixture file of one source."""

    def write(source: Path, phase: str = "pretrain", name: str = "mixture.yaml", **options) -> Path:
        path = tmp_path / name
        declared = {"name": "rows", "source": str(source), **options}
        path.write_text(yaml.safe_dump({"metadata": {"phase": phase}, "datasets": [declared]}))
        return path

    return write


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder, but what holds the lock of a build: an empty file that must outlive it, and its folder."""
    locks = {path for path in folder.rglob(".*.lock") if not path.stat().st_size}
    kept = {parent for path in locks for parent in path.parents if {*parent.iterdir()} <= locks}
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path not in locks and path not in kept
    }


def assert_in_order(fragments: list[str], message: str) -> None:
    place = 0
    for fragment in fragments:
        found = message.find(fragment, place)
        assert found >= 0, f"{fragment!r} not in {message!r}"
        place = found + len(fragment)


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configs(build, name):
    path = CONFIGS / f"{name}.yaml"
    message = build(path, *(["--tokenizer", "tiny"] if name == "tokens_out_of_reach" else []))
    assert message.startswith("error: ")
    assert_in_order(BAD_CONFIGS[name], message)
    if BAD_CONFIGS[name][0].startswith("line "):
        assert all(line.startswith(f"{path}, line ") for line in message.removeprefix("error: ").splitlines())


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows(build, mixture, name):
    phase, fragments = BAD_ROWS[name]
    message = build(mixture(ROWS / name, phase))
    assert message.startswith("error: ") and str(ROWS / name) in message
    assert_in_order(fragments, message)


@pytest.mark.parametrize("name", MADE_FILES)
def test_bad_files_that_are_made_here(build, mixture, tmp_path, name):
    content, fragments = MADE_FILES[name]
    (tmp_path / name).write_bytes(content)
    message = build(mixture(tmp_path / name))
    assert message.startswith("error: ") and str(tmp_path / name) in message and len(message) < 2000
    assert_in_order(fragments, message)


def test_the_tables_have_every_file():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(BAD_CONFIGS)
    assert {path.name for path in ROWS.iterdir()} == set(BAD_ROWS)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "a mixture file is a mapping with 'metadata' and 'datasets'"),
        (b"metadata: caf\xe9", "not UTF-8 text (unexpected end of data at byte 13)"),
        (b"metadata: \x00", "not valid YAML: unacceptable character #x0000"),
        (b"[" * 100_000, "not valid YAML: "),
        (b"metadata: {phase: sft}\n---\nseed: 1\n", "line 2: not valid YAML: but found another document"),
        (b"metadata: {phase: !!python/name:os.system }\n", "line 1: not valid YAML: could not determine a constructor"),
        (b"? [a]\n: b\n", "line 1: not valid YAML: found unhashable key"),
        (b"seed: &again [*again]\n", "line 1: seed: "),
        (b"7: a\n", "line 1: 7: "),
        (BOMBS["lists"].encode(), "not valid YAML: its aliases (*name) expand to more than 100,000 characters"),
        (BOMBS["merged"].encode(), "not valid YAML: its aliases (*name) expand to more than"),
        (b"metadata:\ndatasets:\n", "line 2: datasets: Input should be a valid list"),
        (b"metadata: {phase: sft}\ndatasets: [a, b: c]\n", "line 2: datasets.0: Input should be"),
    ],
)
def test_odd_yaml(build, tmp_path, content, fragment):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    message = build(path)
    assert message.startswith(f"error: {path}") and fragment in message


def test_a_misspelt_mixture_file(build, tmp_path, mixture):
    mixture(ROWS / "empty.jsonl", name="stories.yaml")
    message = build(tmp_path / "storys.yaml")
    assert message == f"error: {tmp_path / 'storys.yaml'}: no such mixture file; did you mean 'stories.yaml'?\n"


def test_mixed_schemas_are_dropped_and_counted_where_the_schema_is_set(mixture):
    path = mixture(ROWS / "mixed_schemas.jsonl", schema="text")
    mixer = DatasetMixer.from_yaml(path)
    mixer.mixture.validation.ratio = 0.5
    mixer.build()
    reason = "no column 'text': a row of schema 'messages' among rows of 'text'"
    assert mixer.report.sources[0].dropped[reason] == 1


def test_a_table_may_have_columns_that_are_always_null(mixture, tmp_path):
    from datasets import Dataset

    rows = [{"instruction": f"say {i}", "output": "it", "system": None, "history": None} for i in range(40)]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    mixer = DatasetMixer.from_yaml(mixture(tmp_path / "rows.parquet", "sft"))
    mixer.build()
    assert mixer.report.sources[0].row_schema == "alpaca" and not mixer.report.sources[0].dropped.get("no messages")


def test_a_value_that_no_file_can_hold(build, mixture, tmp_path):
    import datetime

    from datasets import Dataset

    Dataset.from_list([{"text": "once", "when": datetime.datetime(2024, 1, 1)}]).to_parquet(tmp_path / "rows.parquet")
    message = build(mixture(tmp_path / "rows.parquet", keep_columns=["when"]))
    assert "rows.parquet, row 1: column 'when' is nothing that JSON can hold" in message


def test_the_output_is_a_file(build, tmp_path):
    (tmp_path / "out").write_text("mine")
    message = build(tiny("sft"), output_dir=tmp_path / "out")
    assert_in_order(["error: ", str(tmp_path / "out"), "file"], message)


def test_the_output_is_below_a_file(build, tmp_path):
    (tmp_path / "out").write_text("mine")
    message = build(tiny("sft"), output_dir=tmp_path / "out" / "deeper")
    assert_in_order(["error: ", str(tmp_path / "out" / "deeper"), "cannot be"], message)


def test_the_output_holds_another_mixture(build, prepared):
    message = build(tiny("pretrain"), output_dir=prepared)
    assert_in_order([str(prepared), "holds another mixture, sft_sft; give another folder"], message)


def test_the_output_holds_something_else(build, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    message = build(tiny("sft"), output_dir=tmp_path / "out")
    assert_in_order([str(tmp_path / "out"), f"no {LOCK}: not a prepared mixture"], message)


def test_the_output_was_cut_off(build, prepared):
    (prepared / LOCK).unlink()
    assert f"no {LOCK}: not a prepared mixture, or one that was cut off" in build(tiny("sft"), output_dir=prepared)


def test_a_prepared_file_was_cut_off(prepared):
    file = prepared / "sft_sft_train.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{prepared}: {file.name} is not as it was written .*; build it again"):
        load_prepared(prepared)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_the_output_cannot_be_written(build, tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("minimind_trl.data.prepared.write_split", refuse)
    message = build(tiny("sft"), output_dir=tmp_path / "out")
    assert message == f"error: {tmp_path / 'out'}: cannot be written: {os.strerror(error)}\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_the_output_is_read_only(build, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    message = build(tiny("sft"), output_dir=tmp_path / "locked" / "out")
    assert_in_order([str(tmp_path / "locked"), "Permission denied"], message)


@pytest.mark.parametrize("config", [CONFIGS / "many_problems.yaml", CONFIGS / "missing_file.yaml"])
def test_as_a_program(tmp_path, config):
    done = run("minimind_trl.cli", ["data", "build", config, "--output_dir", tmp_path / "out"], folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert_in_order(BAD_CONFIGS[config.stem], done.stderr)
    assert not contents(tmp_path)


@pytest.fixture
def prepared(tmp_path) -> Path:
    folder = tmp_path / "prepared"
    assert main(["data", "build", str(tiny("sft")), "--output_dir", str(folder)]) == 0
    assert json.loads((folder / LOCK).read_text())["phase"] == "sft"
    return folder


def tiny(phase: str) -> Path:
    return Path(__file__).parents[2] / "data_configs" / "tiny" / f"{phase}.yaml"
