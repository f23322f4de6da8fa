"""The Hub token that an option may hold: the environment keeps it, for those who need it, and no file does."""

import os

_OPTIONS = ("--hub_token",)


def keep_token(token: str | None) -> None:
    """Hand a token to `huggingface_hub` by the environment.

    In the trainer's settings it would be pickled into every `training_args.bin`, which `push_to_hub` uploads.
    """
    if token is not None:
        os.environ["HF_TOKEN"] = token


def take_out_secrets(words: list[str]) -> list[str]:
    """Replace the values of secret options by `...`, in place: trackers and `recipe.json` note the command line."""
    for number, word in enumerate(words):
        option, has_value, _ = word.partition("=")
        if option.replace("-", "_").lstrip("_") not in [name.lstrip("-") for name in _OPTIONS]:
            continue
        if has_value:
            words[number] = f"{option}=..."
        elif number + 1 < len(words):
            words[number + 1] = "..."
    return words
