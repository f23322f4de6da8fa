"""What goes wrong in any method: learning rate, chat template, rows seen too often, rows cut."""

import math

from .figures import Figures
from .finding import Finding, fault, warning
from .online_rules import ONLINE, held_out_noise
from .run_folder import RunFolder

PAIRWISE = ("dpo", "reward")
_FAR = 10  # times the usual learning rate, or a tenth of it
_TOO_FAR = 30  # times the usual learning rate: worth a warning whatever came of it
_WORSE = 1.3  # times the loss before training: the run has diverged, whatever its learning rate
_MANY_EPOCHS = 3
_TRAINED_ON_PROMPTS = ("pretrain", "midtrain")  # phases in which a model has not seen its chat template


def learning_rate_too_high(run: RunFolder, figures: Figures) -> Finding | None:
    rate, usual, times = _learning_rate(run)
    name, before, after = _held_out(run, figures)
    if run.method in ONLINE:
        shown = times >= _FAR and after < before - held_out_noise(figures, "reward")
    else:
        fell = figures.latest("loss") < 0.8 * before  # of training: what rises is another matter then
        no_better = 0.99 if run.method in PAIRWISE else 0.9  # with a small beta a pair's loss falls slowly
        shown = not fell and (after > _WORSE * before or (times >= _FAR and after > no_better * before))
    if not shown and not times >= _TOO_FAR:
        return None
    seen = "" if math.isnan(after - before) else f", and the held-out {name} went from {before:.3g} to {after:.3g}"
    if times >= _FAR:
        sentence = f"--learning_rate {rate:g} is {times:.0f} times the usual {usual:g} here{seen}: take the usual rate"
    else:
        sentence = f"--learning_rate is {rate:g}{seen}: lower it tenfold, or warm up longer"
    return (fault if shown else warning)("learning rate too high", sentence)


def learning_rate_too_low(run: RunFolder, figures: Figures) -> Finding | None:
    rate, usual, times = _learning_rate(run)
    if not times <= 1 / _FAR or run.last_step < 0.5 * run.options.get("max_steps", 0):  # it may still learn
        return None
    name, before, after = _held_out(run, figures)
    if run.method in ONLINE:
        moved = abs(after - before) > held_out_noise(figures, "reward")
    else:
        moved = after < 0.5 * before if run.method not in PAIRWISE else after < 0.9 * before
    if moved or math.isnan(after - before):
        return None
    sentence = (
        f"--learning_rate {rate:g} is {1 / times:.0f} times lower than the usual {usual:g} here, and the held-out "
        f"{name} went from {before:.3g} only to {after:.3g}: take the usual rate"
    )
    return fault("learning rate too low", sentence)


def memorising(run: RunFolder, figures: Figures) -> Finding | None:
    epochs, trained = figures.latest("epoch", 1), figures.latest("loss")
    losses = figures.evaluations("loss")
    if run.method in ONLINE or len(losses) < 2 or not epochs > _MANY_EPOCHS:
        return None
    best, after = min(losses), losses[-1]
    rises = after > 1.05 * best and trained < 0.5 * after
    if after - trained < 0.1 or not (rises or trained < 0.2 * after):
        return None
    sentence = (
        f"after {epochs:.0f} epochs the training loss is {trained:.3g}, the held-out loss {after:.3g} (at best "
        f"{best:.3g}): the rows are known by heart; use more rows, fewer steps, or the checkpoint of the lowest "
        "held-out loss (--load_best_model_at_end)"
    )
    return fault("memorising", sentence)


def template_mismatch(run: RunFolder, figures: Figures) -> Finding | None:
    checks = run.checks
    if not checks.get("other_template") or checks.get("start_phase") in _TRAINED_ON_PROMPTS:
        return None
    start = run.record.get("start", {}).get("from_weight")
    sentence = (
        f"the chat template renders otherwise than that of {start}, from which the run started: the model reads turns "
        "as it was never taught to; leave --chat_template_path and --tokenizer out, or fine-tune with the new template "
        "first"
    )
    teaches = run.method in ("sft", "distill")  # with enough rows that is a way to teach a new template
    return (warning if teaches else fault)("template mismatch", sentence)


def end_never_trained(run: RunFolder, figures: Figures) -> Finding | None:
    checks = run.checks
    share, cut = checks.get("rows_with_end", 1.0), checks.get("rows_cut", 0.0)
    if share >= 0.5:
        return None
    because = f", because --max_length {run.options.get('max_length')} cuts {cut:.0%} of them" if cut > 0.5 else ""
    sentence = (
        f"{share:.0%} of the conversations have their end of turn in the loss{because}: the model does not learn to "
        "stop; raise --max_length or set on_long: drop, and see what is trained with `minimind-trl data show`"
    )
    return (fault if share < 0.1 else warning)("end of turn never trained", sentence)


def rows_cut(run: RunFolder, figures: Figures) -> Finding | None:
    cut = run.checks.get("rows_cut", 0.0)
    if cut <= 0.3:
        return None
    sentence = (
        f"{cut:.0%} of the rows are cut off at --max_length {run.options.get('max_length')}: raise it, or set on_long: "
        "chunk (texts) or drop in the mixture"
    )
    return warning("truncation", sentence)


def _learning_rate(run: RunFolder) -> tuple[float, float, float]:
    """The run's rate, the usual one, and how many times that it is; NaN where they are not known."""
    rate, usual = run.options.get("learning_rate") or math.nan, run.record.get("usual_learning_rate") or math.nan
    return rate, usual, rate / usual


def _held_out(run: RunFolder, figures: Figures) -> tuple[str, float, float]:
    """The held-out figure that a learning rate shows in: its name, before training and now."""
    name = "reward" if run.method in ONLINE else "loss"
    return name, figures.before(name), figures.after(name)


SETTINGS_RULES = (template_mismatch, end_never_trained, learning_rate_too_high, learning_rate_too_low)
ROWS_RULES = (memorising, rows_cut)
