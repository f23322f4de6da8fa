"""report.html: what it holds, and that it is one safe file."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minimind_trl.cli import main
from minimind_trl.errors import InputError
from minimind_trl.reports import RunFolder
from minimind_trl.reports.figure_table import curves, figure_rows
from minimind_trl.reports.page import LARGEST, page_data, within, write_report

EVIL = "</script><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">\u2028"


def make_run(folder: Path, trainer: str = "MiniMindGRPOTrainer", start: str = "", samples: list | None = None) -> Path:
    """What a recipe leaves that a report reads."""
    folder.mkdir(parents=True)
    files = {
        "recipe.json": {
            "trainer": trainer,
            "command": f"python recipes/x.py --run_name {EVIL}",
            "start": {"preset": None if start else "tiny", "from_weight": start or None},
            "options": {"learning_rate": 0.001, "seed": 42},
            "versions": {"trl": "1.16.0", "transformers": "5.24.0"},
        },
        "metrics.json": {
            "before": {"eval_reward": 0.5, "eval_reward_std": 0.4, "eval_prompts": 100, "eval_loss": 0.0, "epoch": 0},
            "after": {"eval_reward": 0.75001234, "eval_reward_std": 0.3, "eval_prompts": 100, "eval_loss": -0.1},
            "options": {"batch_size": 16, "eval_batches": 2},
        },
        "history.json": [
            {"step": 0, "eval_reward": 0.5},
            *({"step": step, "reward": 0.5 + step / 100, "loss": 1 / step} for step in range(1, 21)),
            {"step": 20, "eval_reward": 0.75001234, "train_runtime": 90.0},
        ],
        "mixture.lock.json": {
            "config": "own",
            "phase": "rlaif",
            "description": EVIL,
            "sources": [
                {
                    "name": EVIL,
                    "target_share": 1.0,
                    "rows_in": 30,
                    "dropped": {"too long": 2},
                    "train": {"rows": 20, "share": 1.0, "tokens": 400},
                    "validation": {"rows": 8},
                }
            ],
            "held_out": {"rows": 8},
        },
        "flight_check.json": {"plan": f"plan: 20 steps {EVIL}", "warnings": ["the prompt differs"]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    lines = [json.dumps(sample) for sample in (rollouts() if samples is None else samples)]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def rollouts(length: int = 3) -> list[dict]:
    prompt = [{"role": "user", "content": f"say {EVIL}"}]
    answer = {"kind": "answer", "prompt": prompt, "right": EVIL, "answer": EVIL, "reward": 1.0}
    rollout = {
        **{"kind": "rollout", "prompt": prompt, "group": 0, "right": None, "left_out": 0, "ended": True},
        **{
            "tokens": [EVIL, " ok", "<|im_end|>"] * (length // 3),
            "reward": 1.0,
            "rewards": {"exact": 1.0, "own": None},
        },
        **{"advantages": [0.5, -0.5, None] * (length // 3), "values": [0.1, 0.2, 0.3] * (length // 3)},
    }
    return [{**sample, "step": step} for step in (0, 10, 20) for sample in (answer, rollout)]


class Scripts(HTMLParser):
    """The scripts of a page, and everything that would load from elsewhere."""

    def __init__(self, page: str):
        super().__init__()
        self.scripts: list[str] = []
        self.loads: list[str] = []
        self._within = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self._within = tag == "script"
        if self._within:
            self.scripts.append("")
        given = dict(attributes)
        self.loads += [value for name in ("src", "href") if (value := given.get(name)) and value[0] not in "#d"]

    def handle_endtag(self, tag):
        self._within = False

    def handle_data(self, text):
        if self._within:
            self.scripts[-1] += text


def embedded(path: Path) -> dict:
    page = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found.group(1))


@pytest.fixture
def report(tmp_path) -> Path:
    sft = make_run(tmp_path / "sft", "MiniMindSFTTrainer", samples=[])
    grpo = make_run(tmp_path / "grpo", start=str(sft / "checkpoint-20"))
    write_report([sft, grpo], tmp_path / "report.html", ask=False)
    return tmp_path / "report.html"


def test_the_numbers_are_those_of_the_run(report):
    data = embedded(report)
    for run in data["runs"]:
        assert run["metrics"] == json.loads((report.parent / run["name"] / "metrics.json").read_text())
    steps, values = data["runs"][1]["curves"]["reward"]
    assert steps == list(range(1, 21)) and values[-1] == 0.7
    assert data["runs"][1]["curves"]["eval_reward"] == [[0, 20], [0.5, 0.75001234]]
    [prompt] = data["answers"]
    assert [answer["exact"] for answer in prompt["answers"]] == [True] * 3


def test_no_text_of_a_run_becomes_part_of_the_page(report):
    page = report.read_text(encoding="utf-8")
    found = Scripts(page)
    assert len(found.scripts) == 4 and found.loads == []
    assert page.count("</script>") == 4 and "<script>document" not in page and "<img" not in page
    assert "too long" in page and "from sft" in page and "from scratch (tiny)" in page


def test_the_table_has_intervals_and_says_what_is_noise(tmp_path):
    run = RunFolder.read(make_run(tmp_path / "run"))
    rows = {row.name: row for row in figure_rows(run)}
    assert next(iter(rows)) == "reward" and list(rows)[-1] == "loss"
    assert rows["reward"].verdict == "better" and rows["loss"].after.low is None
    assert rows["reward"].before.high - 0.5 == pytest.approx(1.96 * 0.4 / 10, rel=1e-3)
    run.metrics["after"]["eval_reward"] = 0.59  # beyond the first interval, and still no more than chance
    assert {row.name: row for row in figure_rows(run)}["reward"].verdict == "noise"


def test_an_unfinished_run_has_its_curves(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.json").unlink()
    write_report([folder], tmp_path / "page.html")
    assert "unfinished" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_verb_writes_beside_one_run_and_above_several(tmp_path, capsys):
    one, other = make_run(tmp_path / "a" / "one"), make_run(tmp_path / "a" / "other")
    assert main(["report", str(one)]) == 0 and (one / "report.html").is_file()
    assert main(["report", str(one), str(other), "--no_answers"]) == 0 and (tmp_path / "a" / "report.html").is_file()
    assert main(["report", str(tmp_path)]) == 2
    assert "no recipe ran there" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no recipe ran there"):
        write_report([tmp_path], tmp_path / "page.html")


def test_long_runs_fit_into_the_page(tmp_path):
    folder = make_run(tmp_path / "run", samples=rollouts(length=3_000))
    history = [{"step": step, "loss": 1.0, "grad_norm": 2.0} for step in range(10_000)]
    (folder / "history.json").write_text(json.dumps(history))
    run = RunFolder.read(folder)
    data = page_data([run])
    assert len(json.dumps(data)) < LARGEST
    steps, _ = data["runs"][0]["curves"]["grpo loss"]
    assert len(steps) <= 6000 and steps[-1] == 9_999
    [sample] = within(150_000, data)["runs"][0]["samples"]["rollout"]["20"]
    assert len(sample["tokens"]) == len(sample["advantages"]) < 512
    assert sample["left_out"] == 3_000 - len(sample["tokens"])
    assert curves(run, 10)["grpo loss"][0][-1] == 9_999


# Uses the page as a reader would, without a pointer where that is possible, and notes what it sees.
READER = """
const seen = {}, event = (key) => new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true});
const press = (node, key) => node.dispatchEvent(event(key));
const all = (query) => [...document.querySelectorAll(query)], one = (query) => document.querySelector(query);
const chosen = () => all('#view-rollout [role="tab"][aria-selected="true"]').map((tab) => tab.textContent);
seen.atFirst = chosen();
const moments = one('#view-rollout [aria-label="Moment of the training"]');
moments.querySelector('[tabindex="0"]').focus();
press(document.activeElement, "Home");
seen.home = chosen();
press(document.activeElement, "ArrowRight");
seen.right = chosen();
seen.focused = document.activeElement.textContent;
all('#view-rollout [aria-label="Color tokens by"] [role="tab"]').at(-1).click();
seen.colors = chosen();
const tokens = one("#view-rollout .tokens"), readout = one("#view-rollout .readout");
tokens.focus();
press(tokens, "ArrowRight");
press(tokens, "ArrowRight");
seen.second = readout.textContent;
press(tokens, "End");
seen.last = readout.textContent;
const skipped = (node) => node.tabIndex < 0 && node.getAttribute("role") !== "tab";
seen.skipped = all("button, input, summary, .tokens").filter(skipped).length;
const theme = () => document.documentElement.dataset.theme ?? "";
const before = theme();
one("#theme").click();
seen.theme = [before, theme()];
const smoothing = one("#smoothing");
smoothing.value = 0.5;
smoothing.dispatchEvent(new Event("input", {bubbles: true}));
seen.smoothing = smoothing.nextElementSibling.textContent;
const labels = () => all('.plot [role="img"]').map((plot) => plot.getAttribute("aria-label")).join(" ");
seen.bothRuns = labels().includes("grpo from");
all("#legend input").at(-1).click();
seen.oneRun = labels().includes("grpo from");
const log = all('.plot button[aria-pressed]')[0];
log.click();
seen.log = log.getAttribute("aria-pressed");
const note = document.createElement("pre");
note.id = "seen";
note.textContent = JSON.stringify(seen);
document.body.append(note);
"""


def dumped(page: Path, width: int) -> str:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    command += [f"--window-size={width},900", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it(report, width):
    """In a headless Chromium: the script runs to its end, and draws curves and microscope."""
    page = dumped(report, width)
    assert 'data-ready="true"' in page
    assert page.count('class="uplot') == len([panel for panel in embedded(report)["panels"] if panel["is_main"]])
    assert page.count('role="tab"') == 3 + 2  # moments, and advantage or value
    assert 'aria-selected="true"' in page and "background: rgb(var(--plus)" in page
    assert "<title>hacked" not in page and "✓ exact" in page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_it_can_be_used_by_keyboard_and_clicks(report):
    page = report.read_text(encoding="utf-8")
    report.write_text(page.replace("</body>", f"<script>{READER}</script></body>"), encoding="utf-8")
    noted = re.search(r'<pre id="seen">(.*?)</pre>', dumped(report, 1280), re.DOTALL)
    seen = json.loads(html.unescape(noted.group(1)))
    assert seen["atFirst"] == ["step 20", "advantage"]
    assert seen["home"] == ["step 0", "advantage"]
    assert seen["right"] == ["step 10", "advantage"] and seen["focused"] == "step 10"
    assert seen["colors"] == ["step 10", "value"]
    assert seen["second"].startswith('token 2 of 3 " ok": advantage -0.5') and "value 0.2" in seen["second"]
    assert seen["last"].startswith('token 3 of 3 "<|im_end|>"') and "value 0.3" in seen["last"]
    assert seen["skipped"] == 0  # no control that the Tab key leaves out
    assert seen["theme"][0] != seen["theme"][1] and seen["smoothing"] == "0.50"
    assert seen["bothRuns"] and not seen["oneRun"]
    assert seen["log"] == "true"
