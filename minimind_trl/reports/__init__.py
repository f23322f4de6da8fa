"""What happened in a run? Its curves, its samples, and what went wrong."""

from .run_folder import FLIGHT_CHECK, HISTORY, RunFolder

__all__ = ["FLIGHT_CHECK", "HISTORY", "RunFolder"]
