"""MiniMind language models on the Hugging Face stack."""

import sys

import accelerate.utils.other

from . import models  # registers the Auto* classes

__version__ = "0.1.0"
__all__ = ["models"]

# To take a model out of its wrapper, accelerate imports DeepSpeed wherever it is installed, which prints and takes
# seconds. A model can only be in DeepSpeed's wrapper once that has been imported.
accelerate.utils.other.is_deepspeed_available = lambda: "deepspeed" in sys.modules
