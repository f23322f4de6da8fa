"""Group relative policy optimization, TRL's, with this package's evaluation, decoding and resume."""

from .rollout_trainer import RolloutTrainer


class MiniMindGRPOTrainer(RolloutTrainer):
    """GRPOTrainer (DeepSeekMath, arXiv 2402.03300): the advantage of an answer is its reward against its group's.

    Algorithm, losses and options are TRL's; see `RolloutTrainer` for what differs.
    """
