"""What happened in a run? Its curves, its samples, and what went wrong."""

from .examination import examine
from .finding import Finding
from .run_folder import FLIGHT_CHECK, HISTORY, RunFolder

__all__ = ["FLIGHT_CHECK", "HISTORY", "Finding", "RunFolder", "examine"]
