"""`minimind-trl serve`: what OpenAI's client gets from it."""

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from minimind_trl.cli import main
from minimind_trl.commands.serve import save_served
from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import small_config
from tests.forking import says, start

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
RESULT = {"role": "tool", "content": "5"}
ASKED = {"role": "user", "content": "2 + 3?"}
WHY = {"role": "user", "content": "Why?"}


# --- quick ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("dense2", "LlamaForCausalLM"), ("dense3", "Qwen3ForCausalLM"), ("moe3", "Qwen3MoeForCausalLM")],
)
def test_what_is_served_is_the_twin_with_a_way_to_read_answers(checkpoints, tmp_path, kind, architecture):
    save_served(str(checkpoints[kind]), tmp_path / "twin", dtype="bfloat16")
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "twin")
    assert type(twin).__name__ == architecture and twin.dtype == torch.bfloat16
    assert '"response_template"' in (tmp_path / "twin/tokenizer_config.json").read_text()
    sampled = GenerationConfig.from_pretrained(tmp_path / "twin")
    assert sampled.do_sample and sampled.temperature == 1 and sampled.eos_token_id == tiny_tokenizer().eos_token_id


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{moe2}"], "a MiniMind2 mixture of experts has no stock twin, so transformers serve cannot load it"),
        (["no/such/folder"], "no/such/folder: no such checkpoint directory"),
        (["{dense3}", "--port", "99999"], "--port 99999: must be from 0 to 65535"),
        (["{dense3}", "--port", "{taken}"], "Address already in use"),
        (["{dense3}", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000: "),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(checkpoints, capsys, words, message):
    pytest.importorskip("fastapi")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {kind: str(path) for kind, path in checkpoints.items()} | {"taken": str(taken.getsockname()[1])}
        if "{taken}" not in words and "--port" not in words and "--host" not in words:
            words = [*words, "--port", "0"]
        assert main(["serve", *(word.format(**names) for word in words)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_without_its_packages_the_extra_is_named(checkpoints, monkeypatch, capsys):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    assert main(["serve", str(checkpoints["dense3"])]) == 2
    assert 'pip install "minimind-trl[serve]"' in capsys.readouterr().err


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(once) -> Path:
    """A small model that knows by heart: an answer, one with reasoning, a tool call, and the answer to its result."""

    def train(folder: Path) -> None:
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        known = [
            ([ASKED, {"role": "assistant", "content": "It is 5."}], {}),
            ([WHY, {"role": "assistant", "content": "Five.", "reasoning_content": "add them"}], {}),
            ([ASKED, called], {"tools": TOOLS}),
            ([ASKED, called, RESULT, {"role": "assistant", "content": "Five it is."}], {"tools": TOOLS}),
        ]
        rows = [tokenizer.apply_chat_template(row, return_dict=True, **more)["input_ids"] for row, more in known]
        model = MiniMindForCausalLM(small_config("dense3"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(100):
            for row in rows:
                ids = torch.tensor([row])
                model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder / "known")
        tokenizer.save_pretrained(folder / "known")

    return once("known_answers", train) / "known"


@pytest.fixture(scope="module")
def url(trained, tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("fastapi")
    log = tmp_path_factory.mktemp("serve") / "log"
    process = start("minimind_trl.cli", ["serve", trained, "--port", 0], stdout=log)
    try:
        assert says(log, "Uvicorn running", 120), log.read_text()
        yield re.search(r"model 'known' at (\S+)", log.read_text())[1]
    finally:
        process.terminate()
        process.join(30)


@pytest.fixture
def client(url):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def greedy(**more) -> dict:
    return {"model": "known", "messages": [ASKED], "temperature": 0, "max_tokens": 60, **more}


THINKING = {"chat_template_kwargs": {"open_thinking": True}}


@pytest.mark.slow
def test_chat(client):
    assert [model.id for model in client.models.list()] == ["known"]
    answer = client.chat.completions.create(**greedy())
    assert answer.choices[0].message.content.strip() == "It is 5." and answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 3
    answer = client.chat.completions.create(**greedy(max_tokens=2))
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.slow
def test_reasoning_is_apart_whole_and_streamed(client):
    message = client.chat.completions.create(**greedy(messages=[WHY]), extra_body=THINKING).choices[0].message
    assert message.content == "Five." and message.reasoning_content.strip() == "add them"
    chunks = client.chat.completions.create(**greedy(messages=[WHY], stream=True), extra_body=THINKING)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert reasoning.strip() == "add them" and "".join(delta.content or "" for delta in deltas) == "Five."


@pytest.mark.slow
def test_tools(client):
    answer = client.chat.completions.create(**greedy(tools=TOOLS)).choices[0]
    [call] = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 2, "b": 3}')
    assert answer.finish_reason == "tool_calls"
    messages = [ASKED, answer.message.model_dump(exclude_none=True), RESULT | {"tool_call_id": call.id}]
    answer = client.chat.completions.create(**greedy(tools=TOOLS, messages=messages)).choices[0]
    assert answer.message.content.strip() == "Five it is." and answer.finish_reason == "stop"


@pytest.mark.slow
def test_twenty_clients_at_once(url):
    openai = pytest.importorskip("openai")

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**greedy()) for _ in range(20)))
        return [answer.choices[0].message.content.strip() for answer in answers]

    assert asyncio.run(ask_all()) == ["It is 5."] * 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"model": "other"}, 400),
        ({"extra_body": {"no_such_field": 1}}, 422),
        ({"messages": [{"content": "no role"}]}, 500),
    ],
)
def test_a_bad_request_is_refused_and_the_next_one_is_answered(client, request_, status):
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**greedy() | request_)
    assert refused.value.status_code == status
    client = client.with_options(max_retries=2)  # as usual: after a 500 the server closes the connection
    assert client.chat.completions.create(**greedy()).choices[0].message.content.strip() == "It is 5."


@pytest.mark.slow
def test_the_bench_counts_every_request(url):
    pytest.importorskip("openai")
    from minimind_trl.commands.serving_bench import MAX_TOKENS, measure

    requests = asyncio.run(measure(url, "known", clients=4, requests=6))
    assert len(requests) == 6
    assert all(0 < one.first <= one.seconds and 0 < one.tokens <= MAX_TOKENS for one in requests)
