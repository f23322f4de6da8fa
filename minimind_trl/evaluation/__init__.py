"""Measures of every checkpoint, the same during training and afterwards."""

from ..imports import lazy_names

# Imported on first use: `measures.py` is used without these modules and their heavy imports.
_HOMES = {
    "answers": ["exact_match_by_skill", "generate_answers", "position_score"],
    "held_out": ["held_out_figures"],
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
