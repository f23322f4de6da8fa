"""What happened in a run? Its curves, its samples, and what went wrong."""

from .run_folder import HISTORY, RunFolder

__all__ = ["HISTORY", "RunFolder"]
