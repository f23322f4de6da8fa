"""What each stage of the demo gains, over seeds: a table of several runs.

for seed in 1 2 3; do minimind-trl demo --output_dir runs/demo_$seed --seed $seed; done
python benchmarks/demo.py runs/demo_1 runs/demo_2 runs/demo_3
"""

import argparse
import json
import statistics
from pathlib import Path


def table(reports: list[dict]) -> str:
    lines = [
        "| stage | its own figure | before | after | exact match of each seed | mean | spread |",
        "|---|---|---|---|---|---|---|",
    ]
    for stages in zip(*(report["stages"] for report in reports), strict=True):
        stage = stages[0]
        before, after = (
            statistics.mean(run[when][f"eval_{stage['figure']}"] for run in stages) for when in ("before", "after")
        )
        exact = [
            report["exact_match"][stage["stage"]]["all"]["exact_match"]
            for report in reports
            if stage["stage"] in report["exact_match"]
        ]
        cells = [stage["stage"], stage["figure"], f"{before:.3f}", f"{after:.3f}"]
        if exact:
            spread = f"{statistics.stdev(exact):.1%}" if len(exact) > 1 else "-"
            cells += [", ".join(f"{share:.1%}" for share in exact), f"{statistics.mean(exact):.1%}", spread]
        else:
            cells += ["-", "-", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of the demo")
    args = parser.parse_args()
    reports = [json.loads((run / "report.json").read_text(encoding="utf-8")) for run in args.runs]
    print(table(reports))
    print(f"\nSeeds {', '.join(str(report['seed']) for report in reports)}; seconds:", end=" ")
    print(", ".join(f"{report['seconds']:.0f}" for report in reports))


if __name__ == "__main__":
    main()
