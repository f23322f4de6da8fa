"""Tokens per second and time to first token of a running server, as its clients see them."""

import asyncio
import time
from dataclasses import dataclass
from statistics import median

import openai
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from rich.console import Console
from rich.table import Table

MAX_TOKENS = 64
_REQUESTS = 8  # or one for each client, if there are more
_PROMPT = "Explain in a few sentences what a language model is."


@dataclass(frozen=True)
class Request:
    """What one streamed request took: seconds to its first token and to its end, and its tokens."""

    first: float
    seconds: float
    tokens: int


def print_bench(url: str, model: str, clients: tuple[int, ...]) -> None:
    """Measure with each number of clients, and print a table."""
    table = Table(title=f"{model}: answers of at most {MAX_TOKENS} tokens")
    for column in ("clients", "requests", "tokens", "tokens/s", "first token, median", "first token, slowest"):
        table.add_column(column, justify="right")
    asyncio.run(measure(url, model, 1, 1))  # the first request is slower than all later ones
    for count in clients:
        started = time.perf_counter()
        requests = asyncio.run(measure(url, model, count, max(count, _REQUESTS)))
        seconds = time.perf_counter() - started
        tokens, firsts = sum(one.tokens for one in requests), [one.first for one in requests]
        cells = (count, len(requests), tokens, f"{tokens / seconds:,.1f}")
        table.add_row(*map(str, cells), f"{median(firsts):.3f} s", f"{max(firsts):.3f} s")
    Console(width=None if Console().is_terminal else 120).print(table)


async def measure(url: str, model: str, clients: int, requests: int) -> list[Request]:
    """Ask `requests` times, `clients` at once."""
    places = asyncio.Semaphore(clients)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=10) as client:
        return await asyncio.gather(*(_ask(client, model, places) for _ in range(requests)))


async def _ask(client: openai.AsyncOpenAI, model: str, places: asyncio.Semaphore) -> Request:
    async with places:
        started, first, tokens = time.perf_counter(), None, 0
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": _PROMPT}],
            stream=True,
            max_tokens=MAX_TOKENS,
            temperature=0,
        )
        async for chunk in stream:
            if first is None and _has_text(chunk.choices[0].delta):
                first = time.perf_counter() - started
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        seconds = time.perf_counter() - started
        return Request(seconds if first is None else first, seconds, tokens)


def _has_text(delta: ChoiceDelta) -> bool:
    """Whether a delta has more than line breaks: those of the prompt's own <think> block are sent at once."""
    text = (delta.content or "") + (getattr(delta, "reasoning_content", None) or "")
    return bool(text.strip() or delta.tool_calls)
