"""`minimind-trl convert --to gguf`: the file, a Modelfile for Ollama, and the certificate that llama.cpp agrees."""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import CertificateError
from ..evaluation.certificates import (
    PERPLEXITY_PROMPTS,
    Comparison,
    certificate_prompts,
    compare_answers,
    compare_log_probs,
    compare_rendered,
    compare_tokens,
    versions,
)
from ..evaluation.llama_cpp import LlamaCpp
from ..files import file_digest, write_json
from ..models.gguf_file import write_gguf

CERTIFICATE = "certificate.json"
MODELFILE = "Modelfile"


def export_gguf(
    twin: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    name: str,
    outtype: str,
    certified: bool = True,
) -> list[Comparison]:
    """Write `NAME-OUTTYPE.gguf`, a Modelfile and, if the file was compared with the model, `certificate.json`.

    Args:
        twin: the model in float32, from `to_twin`.
        tokenizer: its tokenizer; the chat template must be plain Jinja.
        folder: an existing folder; if there is an error, remove it.
        name: of the model.
        outtype: one of `FILE_TYPES`.
        certified: whether llama.cpp checks the file.

    Returns:
        the comparisons; empty without a certificate.

    Raises:
        CheckpointError: llama.cpp has no counterpart of the model or its tokenizer.
        CertificateError: llama.cpp cannot load the file, or computes something else than the model.
    """
    file = folder / f"{name}-{outtype}.gguf"
    write_gguf(twin, tokenizer, file, outtype, name)
    (folder / MODELFILE).write_text(_modelfile(file.name, tokenizer), encoding="utf-8")
    if not certified:
        return []
    comparisons = _compared(twin, tokenizer, file, outtype)
    write_json(
        folder / CERTIFICATE,
        {
            "file": {"name": file.name, "bytes": file.stat().st_size, "sha256": file_digest(file)},
            "compared": "the file as llama.cpp reads it (package xllamacpp) with the model and its tokenizer",
            "model": {"name": name, "architecture": type(twin).__name__, "parameters": twin.num_parameters()},
            "versions": versions("gguf", "xllamacpp"),
            "comparisons": [comparison.as_dict() for comparison in comparisons],
            "not_compared": [f"{MODELFILE}: Ollama was not run"],
        },
    )
    return comparisons


def _compared(twin, tokenizer, file: Path, outtype: str) -> list[Comparison]:
    """Answers are compared in float32, so that a rounding cannot hide a wrong layout; then the file itself."""
    comparisons: list[Comparison] = []
    with TemporaryDirectory(dir=file.parent) as temporary:
        exact = file
        if outtype != "f32":
            exact = Path(temporary) / "f32.gguf"
            write_gguf(twin, tokenizer, exact, "f32", file.stem)
        for comparison in _comparisons(twin, tokenizer, exact, file, outtype):
            comparisons.append(comparison)
            if comparison.problem:
                raise CertificateError(
                    f"{file.name}: not written, since llama.cpp disagrees: {comparison.line()}; {comparison.problem}"
                )
    return comparisons


def _comparisons(twin, tokenizer, exact: Path, file: Path, outtype: str) -> Iterator[Comparison]:
    in_float32 = _loaded(exact)
    yield from compare_tokens(in_float32, tokenizer)
    if tokenizer.chat_template:
        yield compare_rendered(in_float32, tokenizer)
    answers, sequences = compare_answers(in_float32, twin, tokenizer, certificate_prompts(tokenizer))
    answers.what += " in f32"
    yield answers
    sequences = sequences[:PERPLEXITY_PROMPTS]
    yield compare_log_probs(in_float32, twin, sequences, "f32")
    if outtype != "f32":
        yield compare_log_probs(_loaded(file), twin, sequences, outtype)


def _loaded(file: Path) -> LlamaCpp:
    try:
        return LlamaCpp(file)
    except RuntimeError as error:
        raise CertificateError(f"{file.name}: not written, since llama.cpp cannot load it: {error}") from error


def _modelfile(file_name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A Modelfile whose template, in Go's language, writes the turns as the chat template does (without tools)."""
    lines = [f"FROM ./{file_name}"]
    if tokenizer.chat_template and (parts := _parts_of_template(tokenizer)):
        system, before_answer, prompt = parts
        if system:
            lines.append(f'SYSTEM """{system}"""')
        turn = "<|im_start|>{{ .Role }}\n" + f'{{{{ if eq .Role "assistant" }}}}{before_answer}{{{{ end }}}}'
        turn += "{{ .Content }}<|im_end|>\n"
        lines.append(f'TEMPLATE """{{{{ range .Messages }}}}{turn}{{{{ end }}}}{prompt}"""')
    stops = [token for token in (tokenizer.eos_token, tokenizer.pad_token) if token]
    lines += [f'PARAMETER stop "{token}"' for token in dict.fromkeys(stops)]
    return "\n".join(lines) + "\n"


def _parts_of_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str] | None:
    """Of MiniMind's templates: the default system message, what precedes an answer, and the prompt for one."""
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "R"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    pattern = r"(?:<\|im_start\|>system\n(.*?)<\|im_end\|>\n)?<\|im_start\|>user\nQ<\|im_end\|>\n"
    pattern += r"<\|im_start\|>assistant\n(.*)A<\|im_end\|>\n<\|im_start\|>user\nR<\|im_end\|>\n(.*)"
    found = re.fullmatch(pattern, text, re.DOTALL)
    return (found[1] or "", found[2], found[3]) if found else None
