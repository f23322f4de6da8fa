"""One thing that is wrong with a run."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    Attributes:
        name: of the cause, such as "learning rate too high"; docs/doctor.md lists them.
        sentence: what is wrong, the figures that show it, and what to do.
        severity: a "fault" spoils the run; a "warning" may be intended, or may still pass.
    """

    name: str
    sentence: str
    severity: Literal["fault", "warning"]


def fault(name: str, sentence: str) -> Finding:
    return Finding(name, sentence, "fault")


def warning(name: str, sentence: str) -> Finding:
    return Finding(name, sentence, "warning")
