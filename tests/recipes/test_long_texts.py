"""Texts longer than max_length as a recipe trains on and measures them: in pieces, without a token lost or joined."""

import json

import pytest
import torch
from datasets import Dataset, IterableDataset

from minimind_trl.evaluation import held_out_figures
from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.run import PretrainRecipeConfig
from minimind_trl.tokenization import pieces, tiny_tokenizer
from minimind_trl.trainers import MiniMindSFTTrainer
from minimind_trl.trainers.tokenized_rows import pieces_of
from tests.conftest import small_config

LIMIT = 32
ROWS = [{"text": f"{n} " + "word " * (60 if n % 3 == 0 else 4), "source": "ab"[n % 2]} for n in range(12)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def documents(tokenizer):
    """Token ids of every row, with the end-of-text token."""
    return [tokenizer(row["text"] + tokenizer.eos_token)["input_ids"] for row in ROWS]


def trainer(tmp_path, tokenizer, rows=None, **options) -> MiniMindSFTTrainer:
    defaults = {"max_length": LIMIT, "bf16": False, "report_to": "none", "learning_rate": 1e-3, "packing": False}
    on_long = options.pop("on_long", "chunk")
    return MiniMindSFTTrainer(
        model=MiniMindForCausalLM(small_config("dense3")),
        args=PretrainRecipeConfig(str(tmp_path), **{**defaults, **options}),
        train_dataset=Dataset.from_list(ROWS) if rows is None else rows,
        processing_class=tokenizer,
        on_long=on_long,
    )


def sequences(prepared) -> list[list[int]]:
    """The rows, or what is packed into them."""
    found = []
    for row in prepared:
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            found.append(row["input_ids"][start : start + length])
            assert row["labels"][start : start + length] == found[-1]
            start += length
    return found


def expected_pieces(documents) -> list[list[int]]:
    return [ids[part] for ids in documents for part in pieces(len(ids), LIMIT)]


@pytest.mark.parametrize("packing", [False, True])
def test_no_token_is_lost_and_no_document_runs_into_another(tmp_path, tokenizer, documents, packing):
    prepared = trainer(tmp_path, tokenizer, packing=packing).train_dataset
    found = sequences(prepared)
    assert sorted(found) == sorted(expected_pieces(documents))
    assert max(len(row["input_ids"]) for row in prepared) <= LIMIT
    if not packing:
        assert found == expected_pieces(documents)
        assert [token for piece in found for token in piece] == [token for ids in documents for token in ids]
    # The end of a document, and only that, has the end-of-text token.
    ends = [piece[-1] == tokenizer.eos_token_id for piece in found]
    assert sum(ends) == len(documents) == sum(piece.count(tokenizer.eos_token_id) for piece in found)


def test_it_is_the_same_every_time(tmp_path, tokenizer):
    once, again = (trainer(tmp_path, tokenizer, packing=True).train_dataset for _ in range(2))
    assert list(once) == list(again)


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_goes_on_in_pieces_too(tmp_path, tokenizer, documents, packing):
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    prepared = trainer(tmp_path, tokenizer, stream, packing=packing, max_steps=1)._prepare_dataset(
        stream, tokenizer, PretrainRecipeConfig(str(tmp_path), max_length=LIMIT, bf16=False), packing, None, "train"
    )
    assert sorted(sequences(prepared)) == sorted(expected_pieces(documents))


def test_a_stream_in_pieces_goes_on_where_it_was(documents):
    rows = IterableDataset.from_generator(lambda: iter({"input_ids": ids, "labels": ids} for ids in documents))
    stream, states = pieces_of(rows, LIMIT), []
    expected = []
    for row in stream:
        expected.append(row["input_ids"])
        states.append(json.loads(json.dumps(stream.state_dict())))
    for done in (1, 2, 5):
        again = pieces_of(rows, LIMIT)
        again.load_state_dict(states[done - 1])
        assert [row["input_ids"] for row in again] == expected[done:]


def test_a_piece_of_which_nothing_is_learned_is_left_out():
    """Of a text with a turn that is not trained; a batch of such pieces would have no loss."""
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4, 5, 6]], "labels": [[-100, -100, -100, 4, 5, 6]]})
    assert list(pieces_of(rows, 2)) == [
        {"input_ids": [3, 4], "labels": [-100, 4]},
        {"input_ids": [5, 6], "labels": [5, 6]},
    ]


@pytest.mark.parametrize(
    ("count", "length", "sizes"), [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 3, 2]), (3, 4, [3]), (1, 4, [1])]
)
def test_no_piece_is_a_last_token_alone(count, length, sizes):
    """Which nothing would predict: the end of a text would not be learned, and a batch of it have no loss."""
    parts = pieces(count, length)
    assert [len(range(count)[part]) for part in parts] == sizes
    assert [place for part in parts for place in range(count)[part]] == list(range(count))


def test_where_they_are_cut_the_rest_is_gone(tmp_path, tokenizer, documents):
    prepared = trainer(tmp_path, tokenizer, on_long="cut").train_dataset
    assert sequences(prepared) == [ids[:LIMIT] for ids in documents]


def test_a_limit_that_none_reaches_changes_nothing(tmp_path, tokenizer):
    one, other = (
        trainer(tmp_path, tokenizer, on_long=on_long, max_length=256, packing=True).train_dataset
        for on_long in ("cut", "chunk")
    )
    assert list(one) == list(other)


def test_held_out_texts_are_measured_in_pieces(tokenizer, documents):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(small_config("dense3")).eval()
    figures = held_out_figures(model, tokenizer, ROWS, max_length=LIMIT, batch_size=4, chunk=True)
    parts = expected_pieces(documents)
    nll = count = 0
    with torch.no_grad():
        for piece in parts:
            ids = torch.tensor([piece])
            logits = model(input_ids=ids).logits[0, :-1]
            nll += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += len(piece) - 1
    assert figures["eval_loss"] == pytest.approx(nll / count, rel=1e-5)
    assert (figures["eval_num_tokens"], figures["eval_num_rows"]) == (count, len(parts))
    assert {"eval_loss_a", "eval_loss_b"} <= set(figures) and "eval_rows_without_target" not in figures
    cut = held_out_figures(model, tokenizer, ROWS, max_length=LIMIT, batch_size=4)
    assert cut["eval_num_tokens"] == sum(min(len(ids), LIMIT) - 1 for ids in documents)


def test_an_evaluation_looks_at_no_more_pieces_than_rows(tokenizer):
    model = MiniMindForCausalLM(small_config("dense3")).eval()
    figures = held_out_figures(model, tokenizer, ROWS, max_length=LIMIT, batch_size=2, max_batches=2, chunk=True)
    assert figures["eval_num_rows"] == 4
