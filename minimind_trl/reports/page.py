"""`report.html`: one page about a run or several, which needs no network."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.measures import short_number
from ..files import atomic_path
from .examination import examine
from .figure_table import curves, figure_rows, panels
from .run_folder import RunFolder
from .samples import MOST_TOKENS
from .stage_answers import stage_answers

REPORT = "report.html"
LARGEST = 4_500_000  # bytes of a page, about
_PARTS = Path(__file__).with_name("page")
_POINTS = 6000  # of one figure's curves, in all runs together
_LONGEST_TEXT = 20_000  # characters of a flight check
_KINDS = ("rollout", "loss", "pair", "score")
_SHOWN_OPTIONS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size", "num_train_epochs"),
    *("gradient_accumulation_steps", "max_length", "max_completion_length", "num_generations", "temperature", "beta"),
    *("kl_coef", "loss_type", "packing", "weight_decay", "seed", "reward_funcs", "reward_weights"),
)


def write_report(folders: Iterable[str | Path], path: str | Path, *, ask: bool = True) -> None:
    """Write one HTML file about runs, finished or not, in the order in which they are given.

    Args:
        folders: the runs' output folders.
        ask: with several runs, let each run's model answer the held-out prompts that the others recorded.

    Raises:
        InputError: a folder holds no run.
    """
    runs = [RunFolder.read(folder) for folder in folders]
    page = render(page_data(runs, ask=ask and len(runs) > 1), runs)
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")


def page_data(runs: Sequence[RunFolder], *, ask: bool = False) -> dict[str, Any]:
    """What the page's script draws, and the runs' `metrics.json` as they are."""
    names, points = unique_names(runs), max(_POINTS // len(runs), 100)
    described = [
        {
            "name": name,
            "method": run.method,
            "steps": run.last_step,
            "metrics": run.metrics,
            "curves": curves(run, points),
            "samples": _by_kind(run),
        }
        for name, run in zip(names, runs, strict=True)
    ]
    logged = {name for run in described for name in run["curves"]}
    data = {"runs": described, "panels": panels(logged), "answers": stage_answers(runs, ask)}
    return within(LARGEST, data)


def within(largest: int, data: dict[str, Any]) -> dict[str, Any]:
    """The data with samples so short that all of it takes at most `largest` bytes as JSON."""
    most = MOST_TOKENS
    while len(json.dumps(data)) > largest and most:
        most //= 2
        data = data | {"answers": shortened(data["answers"], 8 * most)}
        data["runs"] = [run | {"samples": shortened(run["samples"], most) if most else {}} for run in data["runs"]]
    return data


def shortened(value: Any, most: int) -> Any:
    """A value with lists of at most `most` entries, and texts of at most eight times as many characters."""
    if isinstance(value, str):
        return value if len(value) <= 8 * most else f"{value[: 8 * most]}…"
    if isinstance(value, list):
        return [shortened(entry, most) for entry in value[:most]]
    if not isinstance(value, dict):
        return value
    short = {name: shortened(entry, most) for name, entry in value.items()}
    if "tokens" in value:
        short["left_out"] = value.get("left_out", 0) + len(value["tokens"]) - len(short["tokens"])
    return short


def unique_names(runs: Sequence[RunFolder]) -> list[str]:
    """The folders' names, with their parents' where two are the same."""
    short = [run.folder.resolve().name for run in runs]
    paths = [run.folder.resolve() for run in runs]
    return [
        name if short.count(name) == 1 else f"{path.parent.name}/{name}"
        for name, path in zip(short, paths, strict=True)
    ]


def _by_kind(run: RunFolder) -> dict[str, dict[str, list[dict]]]:
    """Samples by kind and step."""
    found: dict[str, dict[str, list[dict]]] = {}
    for sample in run.samples:
        if sample["kind"] in _KINDS:
            rest = {name: value for name, value in sample.items() if name not in ("kind", "step")}
            found.setdefault(sample["kind"], {}).setdefault(str(sample["step"]), []).append(rest)
    return found


def render(data: dict[str, Any], runs: Sequence[RunFolder]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # not needed by `--help`

    environment = Environment(
        loader=FileSystemLoader(_PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": short_number, "breakable": breakable}
    names = unique_names(runs)
    described = [_described(run, name, runs, names) for run, name in zip(runs, names, strict=True)]
    parts = {name: (_PARTS / file).read_text(encoding="utf-8") for name, file in _INLINED.items()}
    return environment.get_template("report.html.jinja").render(
        title=", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}",
        runs=described,
        data=script_json(data),
        healthy=[run["name"] for run in described if not run["findings"] and not run["warnings"]],
        **parts,
    )


_INLINED = {
    "plot_style": "uPlot.min.css",
    "style": "report.css",
    "plot_license": "uPlot.LICENSE",
    "plot_script": "uPlot.iife.min.js",
    "script": "report.js",
}


def breakable(name: str) -> str:
    """A name as HTML, which narrow screens may break after its underscores and slashes."""
    from markupsafe import Markup, escape  # comes with Jinja2

    return Markup(str(escape(name)).replace("_", "_<wbr>").replace("/", "/<wbr>"))


def script_json(data: Any) -> str:
    """JSON that no text within can end the script element of, whatever it is."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _described(run: RunFolder, name: str, runs: Sequence[RunFolder], names: Sequence[str]) -> dict[str, Any]:
    """What the page says about a run without its script."""
    plan = run.flight_check.get("plan", "")
    last = {name: value for entry in run.history for name, value in entry.items()}
    return {
        "name": name,
        "method": run.method,
        "start": _start(run, runs, names),
        "steps": run.last_step,
        "seconds": last.get("train_runtime"),
        "tokens": last.get("num_input_tokens_seen"),
        "is_finished": bool(run.metrics),
        "figures": figure_rows(run),
        "command": run.record["command"],
        "options": {name: run.options[name] for name in _SHOWN_OPTIONS if run.options.get(name) is not None},
        "versions": run.record["versions"],
        "mixture": mixture_rows(run.lock),
        "lock": run.lock,
        "plan": plan if len(plan) <= _LONGEST_TEXT else f"{plan[:_LONGEST_TEXT]}…",
        "warnings": run.flight_check.get("warnings", []),
        "findings": examine(run),
    }


def _start(run: RunFolder, runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """What a run started from: another of the runs, a checkpoint's name, or a preset."""
    start = run.record["start"]
    if not start["from_weight"]:
        return f"from scratch ({start['preset']})"
    path = Path(start["from_weight"]).resolve()
    for other, name in zip(runs, names, strict=True):
        if other.folder.resolve() in (path, path.parent):
            return f"from {name}"
    return f"from {path.name}"


def mixture_rows(lock: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each source of a mixture, with its dropped rows by reason; None where a stream does not know."""
    rows = []
    for source in lock.get("sources", []):
        seen, train = source.get("read_so_far", {}), source.get("train", {})
        rows.append(
            {
                "name": source["name"],
                "share": train.get("share", source["target_share"]),
                "rows_in": source.get("rows_in", seen.get("rows")),
                "train": train.get("rows"),
                "held_out": source.get("validation", {}).get("rows"),
                "tokens": train.get("tokens", seen.get("tokens")),
                "dropped": source.get(
                    "dropped", {name: n for name, n in seen.items() if name not in ("rows", "tokens")}
                ),
            }
        )
    return rows
