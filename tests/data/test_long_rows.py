"""Rows longer than max_seq_length: cut, in pieces or dropped, and told to the token."""

import json

import numpy as np
import pytest

from minimind_trl.cli import main
from minimind_trl.data import LOCK, DatasetMixer, MixtureError, load_mixture
from minimind_trl.data.marked_rows import marked_row
from minimind_trl.data.report import describe_long_rows
from minimind_trl.tokenization import pieces, tiny_tokenizer
from tests.data.test_mixer import build, chat, texts

LIMIT = 32


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def long_and_short(count: int = 60) -> list[dict]:
    """Every third text is long."""
    return [{"text": f"{n} " + "word " * (100 if n % 3 == 0 else 2)} for n in range(count)]


def lengths_of(rows, tokenizer) -> list[int]:
    """As trained, with the end-of-text token."""
    return [len(tokenizer(row["text"])["input_ids"]) + 1 for row in rows]


def test_tokens_that_are_cut_are_told_per_source(write, tokenizer):
    sources = {"long": long_and_short(), "short": texts("s", 60)}
    metadata = {"max_seq_length": LIMIT, "on_long": "cut"}
    data, mixer = build(write(sources, metadata=metadata), tokenizer)
    long, short = mixer.report.sources
    lengths = lengths_of([row for row in data["train"] if row["source"] == "long"], tokenizer)
    lost = sum(length - LIMIT for length in lengths if length > LIMIT)
    assert long.long_rows.lost == lost > 0 and long.long_rows.tokens == sum(lengths)
    assert long.train.tokens == sum(lengths) - lost
    assert short.long_rows.lost == short.long_rows.rows == 0
    assert mixer.report.long_rows.lost == lost
    share = f"{lost:,} tokens ({lost / sum(lengths):.1%}) cut off at {LIMIT}"
    assert share in mixer.describe() and share in mixer.markdown()
    assert mixer.lock()["sources"][0]["long_rows"]["lost"] == lost
    [warning] = mixer.warnings()
    enough = long.long_rows.enough
    assert warning == (f"long: {share}; a max_seq_length (--max_length) of {enough} would keep 95% of the tokens")
    kept = sum(min(length, enough) for length in lengths)
    assert kept >= 0.95 * sum(lengths) > sum(min(length, enough - 1) for length in lengths)


@pytest.mark.parametrize("phase", ["pretrain", "midtrain"])
def test_a_text_phase_loses_nothing_unless_asked(write, tokenizer, phase):
    rows = long_and_short()
    data, mixer = build(write({"a": rows}, phase=phase, metadata={"max_seq_length": LIMIT}), tokenizer)
    lengths = lengths_of(data["train"], tokenizer)
    assert mixer.report.train.tokens == sum(lengths) and mixer.report.long_rows.lost == 0
    over = sum(length > LIMIT for length in lengths)
    assert f"{over} longer than {LIMIT} tokens go on in further pieces, nothing is cut" in mixer.describe()
    assert mixer.warnings() == []


def test_rows_that_are_dropped_are_counted_with_their_tokens(write, tokenizer):
    path = write({"a": long_and_short()}, metadata={"max_seq_length": LIMIT, "on_long": "drop"})
    data, mixer = build(path, tokenizer)
    [source] = mixer.report.sources
    assert source.dropped == {f"longer than {LIMIT} tokens": 20} and source.long_rows.rows == 20
    assert source.rows_in == source.train.rows + source.validation.rows + 20
    assert max(lengths_of(data["train"], tokenizer)) <= LIMIT
    assert source.long_rows.lost == sum(lengths_of(long_and_short()[::3], tokenizer))
    assert "dropped with rows longer than 32" in mixer.warnings()[0]
    _, mixer = build(path)
    assert "rows longer than 32 tokens are not dropped: no tokenizer was given" in mixer.describe()


def test_conversations_are_cut_and_pairs_of_a_reward_model_dropped(write, tokenizer):
    chats = [chat(f"q {n}", "word " * (100 if n % 3 == 0 else 2)) for n in range(60)]
    _, mixer = build(write({"a": chats}, phase="sft", metadata={"max_seq_length": 48}), tokenizer)
    assert mixer.report.long_rows.on_long == "cut" and mixer.report.long_rows.lost > 0
    pairs = [{"prompt": f"q {n}", "chosen": "yes " * (1 + n % 2 * 90), "rejected": "no"} for n in range(60)]
    _, mixer = build(write({"a": pairs}, phase="reward", metadata={"max_seq_length": 64}), tokenizer)
    assert mixer.report.sources[0].dropped == {"longer than 64 tokens": 30}


def test_prompts_stay_whole(write, tokenizer):
    prompts = [{"prompt": f"q {n} " + "word " * 50} for n in range(60)]
    _, mixer = build(write({"a": prompts}, phase="rlaif", metadata={"max_seq_length": 8}), tokenizer)
    assert mixer.report.long_rows is None and mixer.report.train.tokens > 8 * mixer.report.train.rows


@pytest.mark.parametrize(
    ("phase", "on_long", "message"),
    [
        ("sft", "chunk", r"on_long chunk does not fit phase sft \(only plain text can be chunked\): cut or drop"),
        ("dpo", "chunk", "on_long chunk does not fit phase dpo"),
        ("reward", "cut", r"on_long cut does not fit phase reward \(such rows are never cut\): drop"),
        ("rlaif", "cut", "on_long cut does not fit phase rlaif"),
        ("pretrain", "chunks", r"metadata.on_long: .*did you mean 'chunk'\?"),
    ],
)
def test_what_does_not_fit_a_phase_is_refused(write, phase, on_long, message):
    with pytest.raises(MixtureError, match=message):
        load_mixture(write({"a": texts("a", 9)}, phase=phase, metadata={"on_long": on_long}))


def test_a_recipe_s_length_is_the_one_that_counts(write, tokenizer):
    mixer = DatasetMixer.from_yaml(write({"a": long_and_short()}, metadata={"max_seq_length": 9999, "on_long": "cut"}))
    made_from = mixer.made_from(tokenizer)
    mixer.max_length = LIMIT
    mixer.build(tokenizer)
    assert mixer.report.long_rows.max_length == LIMIT and mixer.report.long_rows.lost > 0
    changed = {name for name, value in mixer.made_from(tokenizer).items() if made_from[name] != value}
    assert changed == {"max_length"}


@pytest.mark.parametrize("on_long", ["cut", "chunk", "drop"])
def test_a_stream_counts_what_it_loses(write, tokenizer, on_long):
    rows = long_and_short()
    path = write({"a": rows}, metadata={"max_seq_length": LIMIT, "on_long": on_long}, streaming=True)
    data, mixer = build(path, tokenizer)
    read, lengths = list(data["train"]), lengths_of(rows, tokenizer)
    counts = mixer.lock()["sources"][0]["read_so_far"]
    assert counts["rows read"] == 60
    beyond = sum(length - LIMIT for length in lengths if length > LIMIT)
    if on_long == "drop":
        assert counts[f"longer than {LIMIT} tokens"] == 20 and max(lengths_of(read, tokenizer)) <= LIMIT
    else:
        assert counts["tokens"] == sum(lengths)
        assert counts.get("tokens beyond the limit, cut off", 0) == (beyond if on_long == "cut" else 0)
    if on_long == "cut":
        assert f"{beyond:,} tokens beyond the limit, cut off" in mixer.describe()
        assert f"tokens read {beyond:,} ({beyond / sum(lengths):.1%}) were cut off" in mixer.markdown()
        assert mixer.warnings()[0].startswith(f"a: {beyond / sum(lengths):.1%} of the tokens read so far are beyond")
    else:
        assert mixer.warnings() == []


@pytest.mark.parametrize("verb", ["show", "build"])
def test_show_and_build_warn(write, capsys, tmp_path, verb):
    path = write({"a": long_and_short()}, metadata={"max_seq_length": LIMIT, "on_long": "cut"})
    target = ["--output_dir", str(tmp_path / "out")] if verb == "build" else []
    assert main(["data", verb, str(path), "--tokenizer", "tiny", *target]) == 0
    captured = capsys.readouterr()
    assert "warning: a: " in captured.err and "would keep 95% of the tokens" in captured.err
    if verb == "build":
        lock = json.loads((tmp_path / "out" / LOCK).read_text())
        assert lock["long_rows"]["lost"] == lock["sources"][0]["long_rows"]["lost"] > 0


@pytest.mark.parametrize(
    ("on_long", "lengths", "dropped", "lost", "enough"),
    [
        ("cut", [10] * 9 + [110], [], 90, 100),  # 190 of 200 tokens stay if the long one is cut after 100
        ("chunk", [10] * 9 + [110], [], 0, 100),
        ("cut", [10] * 10, [], 0, 10),
        ("drop", [10] * 9, [110], 110, 110),
        ("drop", [100] * 19 + [10], [30], 30, 100),
        ("cut", [], [], 0, 0),
    ],
)
def test_the_length_that_would_do(on_long, lengths, dropped, lost, enough):
    arrays = [np.array(values, dtype=np.uint32) for values in (lengths, dropped)]
    found = describe_long_rows(arrays[0], 20, on_long, arrays[1])
    assert (found.lost, found.enough) == (lost, enough)


def test_what_is_shown_as_trained_ends_where_training_does(tokenizer):
    text = {"text": "one two three four five six seven eight nine ten"}
    ids = tokenizer(text["text"] + tokenizer.eos_token)["input_ids"]
    cut = marked_row(text, tokenizer, 8).plain
    assert cut == f"⟦{tokenizer.decode(ids[:8])}⟧✂{tokenizer.decode(ids[8:])}"
    expected = "".join(f"⟦{tokenizer.decode(ids[part])}⟧" for part in pieces(len(ids), 8))
    assert marked_row(text, tokenizer, 8, "chunk").plain == expected
    assert marked_row(text, tokenizer).plain == marked_row(text, tokenizer, 999).plain == f"⟦{tokenizer.decode(ids)}⟧"
    row = chat("q", "yes " * 30)
    shown = marked_row(row, tokenizer, 40).plain
    assert shown.count("⟦") == shown.count("⟧") == 1 and shown.index("⟧") < shown.index("✂")
    assert marked_row(row, tokenizer, 4).plain.count("⟦") == 0  # the answer begins beyond it


def test_explain_says_what_becomes_of_a_long_row(write, capsys):
    path = write({"a": long_and_short()}, metadata={"max_seq_length": LIMIT})
    assert main(["data", "explain", str(path), "--row", "1", "--tokenizer", "tiny"]) == 0
    assert f"pieces of at most {LIMIT}; the trained part is" in capsys.readouterr().out
