"""A GGUF file run by llama.cpp, through the bindings of the package xllamacpp."""

import json
import os
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError

_FORCED = 1e6  # added to the logit of a token that must come next; the log-probabilities are those without it
_ALL = 1_000_000  # more tokens than any vocabulary has
_SEPARATOR = -1  # no token's id
_CONTEXT = 2048  # tokens of a prompt and its answer
_AT_ONCE = 4  # answers computed together


def check_xllamacpp_installed(pip_line: str) -> None:
    """Check that llama.cpp is there before anything is written.

    Raises:
        InputError: it is not installed.
    """
    try:
        import xllamacpp  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"a GGUF file is checked with llama.cpp, by the package xllamacpp ({error}): {pip_line}, "
            "or give --no_certificate to write it unchecked"
        ) from error


class LlamaCpp:
    """A GGUF file loaded by llama.cpp in this process, on the CPU and in float32 except for the weights.

    It listens on a free port of 127.0.0.1 until it is garbage-collected.

    Raises:
        RuntimeError: llama.cpp cannot load the file.
    """

    def __init__(self, file: Path):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.port = 0
        settings.n_gpu_layers = 0
        settings.n_ctx = _CONTEXT * _AT_ONCE
        settings.n_parallel = _AT_ONCE
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cpuparams.n_threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        settings.warmup = False
        settings.verbosity = -1
        self._server = xllamacpp.Server(settings)
        self._connection = HTTPConnection(urlsplit(self._server.listening_address).netloc)
        self._whole_character = self.tokenize(["a"])[0][0]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = ("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        try:
            self._connection.request(*request)
            response = self._connection.getresponse()
        except (ConnectionError, HTTPException):  # the server closes connections that are idle
            self._connection.close()
            self._connection.request(*request)
            response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"llama.cpp: {path}: {content.decode(errors='replace')}")
        return json.loads(content)

    def tokenize(self, texts: Sequence[str], control_tokens: bool = True) -> list[list[int]]:
        """Token ids of texts.

        Args:
            control_tokens: whether a special token that is spelled out in a text becomes that token.
        """
        # The server takes a mixture of texts, which it tokenizes one by one, and ids, which it passes through.
        mixture = [part for text in texts for part in (text, _SEPARATOR)]
        found = self._post("/tokenize", {"content": mixture, "parse_special": control_tokens})["tokens"]
        ids: list[list[int]] = [[]]
        for token in found:
            if token == _SEPARATOR:
                ids.append([])
            else:
                ids[-1].append(token)
        return ids[:-1]

    def render(self, messages: list[dict], tools: list[dict] | None = None, thinking: bool = True) -> str:
        """The prompt that the file's chat template makes of a conversation."""
        options = {"tools": tools} if tools else {}
        body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": thinking}, **options}
        return self._post("/apply-template", body)["prompt"]

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy answers to prompts, all as token ids. An end token that llama.cpp wrote is the answer's last."""
        request = {"prompt": [list(ids) for ids in prompts], "n_predict": max_new_tokens}
        found = self._post("/completion", {**request, "temperature": 0, "return_tokens": True})
        found = found if isinstance(found, list) else [found]
        return [answer["tokens"] for answer in sorted(found, key=lambda answer: answer["index"])]

    def log_probs(self, ids: Sequence[int]) -> list[float]:
        """The log-probability of every token but the first, given those before it."""
        return [self._log_prob(list(ids[:end]), ids[end]) for end in range(1, len(ids))]

    def _log_prob(self, prompt: list[int], following: int) -> float:
        # The server reports the token that it wrote, unless that is a part of a character. Then write something else,
        # and look for the token among all others.
        if reported := self._next(prompt, following, others=1):
            return reported[0]["logprob"]
        written = self._next(prompt, self._whole_character, others=_ALL)[0]
        return next(token["logprob"] for token in written["top_logprobs"] if token["id"] == following)

    def _next(self, prompt: list[int], following: int, others: int) -> list[dict[str, Any]]:
        request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": others, "id_slot": 0}
        found = self._post("/completion", {**request, "logit_bias": [[following, _FORCED]]})
        return found.get("completion_probabilities", [])
