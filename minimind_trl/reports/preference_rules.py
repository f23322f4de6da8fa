"""What goes wrong in DPO and reward models, read off figures of the two answers."""

import math

from .figures import Figures
from .finding import Finding, fault, warning
from .run_folder import RunFolder

_ALIKE = 0.95  # similarity of tokens from which two answers hardly differ
_CHANCE = 0.6  # accuracy up to which nothing has been learned


def answers_alike(run: RunFolder, figures: Figures) -> Finding | None:
    similarity = run.checks.get("answer_similarity", 0.0)
    if similarity < _ALIKE:
        return None
    accuracy = _accuracy(run, figures)
    sentence = (
        f"chosen and rejected answers share {similarity:.0%} of their tokens in half of the pairs (held-out accuracy "
        f"{accuracy:.2f}): there is little to prefer; take pairs whose answers differ in what matters"
    )
    return (fault if not accuracy > 0.9 else warning)("chosen and rejected hardly differ", sentence)


def both_fall(run: RunFolder, figures: Figures) -> Finding | None:
    names = ("logps/chosen", "logps/rejected")
    (before, chosen), (_, rejected) = ((figures.before(name), figures.after(name)) for name in names)
    if not (chosen < before - max(2.0, 0.5 * abs(before)) and rejected < figures.before("logps/rejected")):
        return None
    sentence = (
        f"the log-probability of the chosen answers fell from {before:.1f} to {chosen:.1f}, and that of the rejected "
        f"ones to {rejected:.1f}: the model unlearns both; lower --learning_rate, raise --beta, or take --loss_type "
        "sigmoid sft, which keeps the chosen ones likely"
    )
    return fault("both log-probabilities fall", sentence)


def labels_without_signal(run: RunFolder, figures: Figures) -> Finding | None:
    accuracy, before, after = _accuracy(run, figures), figures.before("loss"), figures.after("loss")
    epochs = figures.latest("epoch", 1)
    # A new head begins above log 2, the loss of a pair by chance; other losses of DPO begin elsewhere.
    if not (accuracy < _CHANCE and after > 0.97 * min(before, math.log(2)) and epochs >= 1):
        return None
    sentence = (
        f"held-out accuracy is {accuracy:.2f} after {epochs:.1f} epochs, as by chance: the labels do not follow from "
        "the answers; read some pairs, and see whether chosen and rejected are mixed up"
    )
    return fault("labels without signal", sentence)


def _accuracy(run: RunFolder, figures: Figures) -> float:
    return figures.after("rewards/accuracies" if run.method == "dpo" else "accuracy")


PREFERENCE_RULES = (answers_alike, both_fall, labels_without_signal)
