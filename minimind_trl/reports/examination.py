"""The doctor's examination of a run: its causes of trouble, from what it logged and recorded."""

from .figures import Figures
from .finding import Finding
from .learning_rules import PAIRWISE, ROWS_RULES, SETTINGS_RULES
from .online_rules import ONLINE, ONLINE_RULES
from .preference_rules import PREFERENCE_RULES
from .run_folder import RunFolder


def examine(run: RunFolder, figures: Figures | None = None) -> list[Finding]:
    """What is wrong with a run, finished or not: faults before warnings, causes before their consequences.

    Args:
        figures: of the run's history, if they are there already.
    """
    figures = Figures(run.history) if figures is None else figures
    of_method = ONLINE_RULES if run.method in ONLINE else PREFERENCE_RULES if run.method in PAIRWISE else ()
    rules = (*SETTINGS_RULES, *of_method, *ROWS_RULES)
    found = [finding for rule in rules if (finding := rule(run, figures))]
    return sorted(found, key=lambda finding: finding.severity != "fault")
