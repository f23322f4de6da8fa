"""`minimind-trl serve CHECKPOINT`: transformers' OpenAI-compatible server on the checkpoint's stock twin."""

import argparse
import contextlib
import json
import logging
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import CheckpointError, InputError

_BENCH_CLIENTS = (1, 4, 20)


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `serve` verb."""
    what = "serve a checkpoint with OpenAI's API, by transformers serve"
    parser = verbs.add_parser("serve", help=what, description=what.capitalize())
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory, Hub id, LoRA adapter or upstream's .pth")
    parser.add_argument("--tokenizer", help="directory or Hub id; 'tiny' is the one that comes with the package")
    parser.add_argument("--num_attention_heads", type=int, help="of MiniMind2 .pth files, which do not record it")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="%(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="%(default)s, which only this machine reaches")
    parser.add_argument("--port", type=int, default=8000, help="%(default)s; 0: a free one")
    parser.add_argument(
        "--thinking", action=argparse.BooleanOptionalAction, help="for chat templates that can switch it on or off"
    )
    parser.add_argument(
        "--bench", action="store_true", help="measure tokens per second and the time to the first token, then end"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise InputError('serve needs FastAPI, uvicorn and openai: pip install "minimind-trl[serve]"')
    port = _free_port(args.host, args.port)
    name = Path(args.checkpoint).stem if args.checkpoint.endswith(".pth") else Path(args.checkpoint).name
    with TemporaryDirectory() as folder:
        save_served(args.checkpoint, Path(folder) / name, args.tokenizer, args.num_attention_heads, args.dtype)
        with contextlib.chdir(folder):  # so that the server knows the model by its name
            _serve(args, name, port)


def _serve(args: argparse.Namespace, name: str, port: int) -> None:
    from transformers.cli.serve import Serve

    from .conversation import thinking_options

    thinking = thinking_options(args.thinking)
    url = f"http://{args.host}:{port}/v1"
    print(f"model {name!r} at {url}", flush=True)
    server = Serve(
        force_model=name,
        host=args.host,
        port=port,
        chat_template_kwargs=json.dumps(thinking) if thinking else None,
        log_level="error",
        non_blocking=args.bench,
    )
    if args.bench:
        from .serving_bench import print_bench

        for logger in ("uvicorn.access", "uvicorn.error"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        try:
            print_bench(url, name, _BENCH_CLIENTS)
        finally:
            server.kill_server()


def save_served(
    checkpoint: str,
    folder: Path,
    tokenizer: str | None = None,
    num_attention_heads: int | None = None,
    dtype: str = "float32",
) -> None:
    """Save what `transformers serve` loads: the stock twin, and a tokenizer that tells reasoning and tool calls apart.

    As in OpenAI's API, answers are sampled at temperature 1 unless a request says otherwise; 0 is greedy.

    Raises:
        InputError: the checkpoint cannot be loaded, has no twin, or its tokenizer is missing or has no chat template.
    """
    import torch
    from transformers import GenerationConfig

    from ..models.twins import to_twin
    from .conversation import load_chat_model

    loaded = load_chat_model(checkpoint, tokenizer, num_attention_heads)
    try:
        twin = to_twin(loaded.model.to("cpu", getattr(torch, dtype)))
    except CheckpointError as error:
        raise InputError(
            f"{checkpoint}: a MiniMind2 mixture of experts has no stock twin, so transformers serve cannot load it; "
            "minimind-trl chat can"
        ) from error
    stored = twin.generation_config
    twin.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        bos_token_id=stored.bos_token_id,
        eos_token_id=loaded.tokenizer.eos_token_id,
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
    twin.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        InputError: the port is taken, or the host is not this machine's.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port}: must be from 0 to 65535")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: {error.strerror}") from error
        return tried.getsockname()[1]
