"""What happened in a run? Its curves, its samples, and what went wrong."""

from .examination import examine
from .finding import Finding
from .run_folder import FLIGHT_CHECK, HISTORY, METRICS, RECIPE, RunFolder

__all__ = ["FLIGHT_CHECK", "HISTORY", "METRICS", "RECIPE", "Finding", "RunFolder", "examine"]
