"""Mixture files to trainer-ready data sets."""

from .config import Mixture, MixtureError, load_mixture
from .mixer import DatasetMixer

__all__ = ["DatasetMixer", "Mixture", "MixtureError", "load_mixture"]
