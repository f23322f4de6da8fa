"""MiniMind language models on the Hugging Face stack."""

from . import models  # registers the Auto* classes

__version__ = "0.1.0"
__all__ = ["models"]
