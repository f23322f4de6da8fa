"""Mixture files to trainer-ready data sets."""

from ..errors import MixtureError
from .config import Mixture, load_mixture
from .mixer import DatasetMixer
from .prepared import LOCK, load_or_prepare, load_prepared, prepare

__all__ = [
    "LOCK",
    "DatasetMixer",
    "Mixture",
    "MixtureError",
    "load_mixture",
    "load_or_prepare",
    "load_prepared",
    "prepare",
]
