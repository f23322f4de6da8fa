"""One yardstick for every checkpoint, during training and later."""

from .answers import exact_match_by_skill, generate_answers, position_score
from .held_out import held_out_figures

__all__ = ["exact_match_by_skill", "generate_answers", "held_out_figures", "position_score"]
