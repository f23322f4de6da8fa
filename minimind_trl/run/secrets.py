"""Keep a Hub token given as an option in the environment only, and out of all files."""

import os

_OPTIONS = ("--hub_token",)


def keep_token(token: str | None) -> None:
    """Pass a token to `huggingface_hub` by the environment.

    In the trainer's settings it would be pickled into `training_args.bin`, which `push_to_hub` uploads.
    """
    if token is not None:
        os.environ["HF_TOKEN"] = token


def take_out_secrets(words: list[str]) -> list[str]:
    """Replace the values of secret options by `...` in place; trackers and `recipe.json` record the command."""
    for number, word in enumerate(words):
        option, has_value, _ = word.partition("=")
        if option.replace("-", "_").lstrip("_") not in [name.lstrip("-") for name in _OPTIONS]:
            continue
        if has_value:
            words[number] = f"{option}=..."
        elif number + 1 < len(words):
            words[number + 1] = "..."
    return words
