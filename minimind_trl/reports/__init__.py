"""What happened in a run? Its curves, its samples, and what went wrong."""

from .examination import examine
from .finding import Finding
from .run_folder import HISTORY, RunFolder

__all__ = ["HISTORY", "Finding", "RunFolder", "examine"]
