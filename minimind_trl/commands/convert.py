"""`minimind-trl convert SRC DST --to {hf,native,llama,qwen3,vllm,gguf}`."""

import argparse

# Config fields that a native file does not record.
_NATIVE_FIELDS = ("num_attention_heads", "num_experts_per_tok", "max_position_embeddings")


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `convert` verb."""
    parser = verbs.add_parser("convert", help="convert a checkpoint between upstream's format, ours and others")
    parser.add_argument("source", metavar="SRC", help="directory, Hub id, LoRA adapter, or upstream's .pth file")
    parser.add_argument("destination", metavar="DST", help="directory to create, or a .pth file for --to native")
    parser.add_argument("--to", required=True, metavar="{hf,native,llama,qwen3,vllm,gguf}")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    parser.add_argument("--tokenizer", help="directory with the tokenizer to put beside the weights")
    parser.add_argument("--outtype", metavar="{f32,f16,bf16,q8_0}", help="of a GGUF file's matrices (default: f16)")
    parser.add_argument("--no_certificate", action="store_true", help="write a GGUF file or a twin for vLLM unchecked")
    for field in _NATIVE_FIELDS:
        parser.add_argument(f"--{field}", type=int, help="of a native SRC, which does not record it")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from .conversion import convert

    converted = convert(
        args.source,
        args.destination,
        args.to,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        outtype=args.outtype,
        certified=not args.no_certificate,
        config_overrides={name: getattr(args, name) for name in _NATIVE_FIELDS if getattr(args, name) is not None},
    )
    for line in converted.lines:
        print(line)
    print(f"wrote {converted.path}")
