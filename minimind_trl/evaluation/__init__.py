"""One yardstick for every checkpoint, during training and later."""

from ..imports import lazy_names

# Imported on first use: the figures of `measures.py` are printed without any of it.
_HOMES = {
    "answers": ["exact_match_by_skill", "generate_answers", "position_score"],
    "held_out": ["held_out_figures"],
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
