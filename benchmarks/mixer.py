"""Rows per second and peak memory of the data mixer, beside two other ways to do the same.

    python benchmarks/mixer.py [--rows 10000 100000 1000000] [--repeats 3] [--output FILE.json]

Two JSONL sources of generated text, mixed 0.7 to 0.3 behind a length and a regex filter, split 95 to 5 and written as
JSONL again, by

- `ours`: `DatasetMixer.build` on an empty cache, then `write_split`,
- `ours, cached`: the same once more in a new process, on the cache that `ours` left,
- `plain`: Python lists: read, filter, drop exact duplicates, shuffle, share, split, write,
- `datasets`: `load_dataset("json")`, `filter`, `interleave_datasets`, `train_test_split`, `to_json`; duplicates stay.

Every measurement is a process of its own, with its own cache, in turns; the table shows medians. Time starts after the
imports; memory is that of the first process, without workers. Prints a markdown table. Linux only (/proc). With three
repeats it takes 10 to 15 minutes on two cores, 4 GB in $TMPDIR.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

SHARES = {"web": 0.7, "books": 0.3}
SHORTEST, PATTERN = 40, r"https?://"
HELD_OUT, SEED = 0.05, 42
SPLITS = ("train", "validation")
METHODS = ("ours", "ours, cached", "plain", "datasets")
MIXTURE = """
metadata: {phase: pretrain}
datasets:
""" + "".join(
    f"""
  - name: {name}
    source: {name}.jsonl
    mix_ratio: {share}
    filters: [{{type: length, min_length: {SHORTEST}}}, {{type: regex, pattern: '{PATTERN}'}}]
"""
    for name, share in SHARES.items()
)


def make_data(folder: Path, rows: int) -> None:
    """Two sources: one of words, one of Chinese characters; 5% short rows, 5% duplicates, 3% with a link."""
    draw = random.Random(SEED)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    pieces = {"web": (" ", words), "books": ("", [chr(draw.randint(0x4E00, 0x9FA5)) for _ in range(20_000)])}
    for name, share in SHARES.items():
        separator, parts = pieces[name]
        text = ""
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(round(rows * share)):
                kind = draw.random()
                if kind >= 0.05 or not text:  # else the row before once more
                    start, length = draw.randrange(len(parts)), draw.randint(40, 120)
                    # Two runs of the list, so that no two rows are the same by chance.
                    text = separator.join(parts[start : start + length])
                    start = draw.randrange(len(parts))
                    text += separator + separator.join(parts[start : start + length])
                    text = text[: draw.randint(5, 30)] if kind < 0.10 else text
                    text += " https://example.org/" if kind > 0.97 else ""
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    (folder / "mixture.yaml").write_text(MIXTURE)


def ours(folder: Path, output: Path) -> Callable:
    import datasets

    from minimind_trl.data.mixer import DatasetMixer
    from minimind_trl.data.prepared import write_split

    datasets.disable_progress_bars()

    def work(lap: Callable) -> int:
        splits = DatasetMixer.from_yaml(folder / "mixture.yaml").build()
        lap("build")
        for name in SPLITS:
            write_split(splits[name], output / f"{name}.jsonl")
        lap("write")
        return sum(len(rows) for rows in splits.values())

    return work


def plain(folder: Path, output: Path) -> Callable:
    link = re.compile(PATTERN)

    def work(lap: Callable) -> int:
        draw, seen, sources = random.Random(SEED), set(), {}
        for name in SHARES:
            sources[name] = []
            with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    text = row["text"]
                    if len(text) >= SHORTEST and not link.search(text) and text not in seen:
                        seen.add(text)
                        sources[name].append(row | {"source": name})
        size = min(len(rows) / SHARES[name] for name, rows in sources.items())
        mixed = []
        for name, rows in sources.items():
            draw.shuffle(rows)
            mixed += rows[: int(size * SHARES[name])]
        draw.shuffle(mixed)
        held_out = int(len(mixed) * HELD_OUT)
        lap("build")
        for name, rows in zip(SPLITS, (mixed[held_out:], mixed[:held_out]), strict=True):
            with (output / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        lap("write")
        return len(mixed)

    return work


def with_datasets(folder: Path, output: Path) -> Callable:
    from datasets import disable_progress_bars, interleave_datasets, load_dataset

    disable_progress_bars()
    link = re.compile(PATTERN)

    def keep(text: str) -> bool:
        return len(text) >= SHORTEST and not link.search(text)

    def work(lap: Callable) -> int:
        sources = [
            load_dataset("json", data_files=str(folder / f"{name}.jsonl"), split="train")
            .filter(keep, input_columns="text")
            .shuffle(seed=SEED)
            for name in SHARES
        ]
        mixed = interleave_datasets(sources, probabilities=list(SHARES.values()), seed=SEED)
        splits = mixed.train_test_split(test_size=HELD_OUT, seed=SEED)
        lap("build")
        for name, rows in zip(SPLITS, splits.values(), strict=True):
            rows.to_json(output / f"{name}.jsonl", force_ascii=False)
        lap("write")
        return len(mixed)

    return work


def measure(method: str, folder: Path, output: Path) -> dict[str, float]:
    """Run one method in this process: seconds, megabytes, rows written."""
    prepare = {"plain": plain, "datasets": with_datasets}.get(method, ours)
    work = prepare(folder, output)
    memory = Anonymous()
    found = {"start_mb": memory.now()}
    last, started = time.perf_counter(), cpu_seconds()

    def lap(name: str) -> None:
        nonlocal last
        last, before = time.perf_counter(), last
        found[f"{name}_s"], found[f"{name}_mb"] = last - before, memory.peak

    with memory:
        found["rows_out"] = work(lap)
    found["cpu_s"] = cpu_seconds() - started
    found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def cpu_seconds() -> float:
    """Of this process and of worker processes that have ended."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Anonymous:
    """Peak of the memory that is no mapped file, which Arrow's tables are; sampled every 10 ms."""

    def __enter__(self) -> "Anonymous":
        self.peak, self._stop = self.now(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, self.now())

    @staticmethod
    def now() -> float:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1]) / 1024


def in_new_process(method: str, folder: Path, cache: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as output:
        environment = os.environ | {"HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--measure", method, str(folder), output]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of every method at one size."""
    make_data(folder, rows)
    runs: dict[str, list] = {method: [] for method in METHODS}
    for repeat in range(repeats):
        for method in METHODS:
            cache = folder / ("ours" if method == "ours, cached" else method)
            if method != "ours, cached":
                shutil.rmtree(cache, ignore_errors=True)
            runs[method].append(in_new_process(method, folder, cache))
            print(f"{rows:,} rows, repeat {repeat + 1}, {method}: {runs[method][-1]}", file=sys.stderr)
        for cache in METHODS:
            shutil.rmtree(folder / cache, ignore_errors=True)
    return {
        method: {name: statistics.median(run[name] for run in found) for name in found[0]}
        for method, found in runs.items()
    }


def table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    columns = ["rows", "method", "build s", "write s", "rows/s", "ours is", "CPU µs a row"]
    columns += ["peak RSS MB", "peak anonymous MB", "over the imports"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for rows, methods in results.items():
        for method, found in methods.items():
            cells = [f"{rows:,}", method, f"{found['build_s']:.2f}", f"{found['write_s']:.2f}"]
            cells += [f"{rows / seconds(found):,.0f}", f"{seconds(found) / seconds(methods['ours']):.2f}x as fast"]
            cells += [f"{found['cpu_s'] / rows * 1e6:.1f}", f"{found['rss_mb']:,.0f}"]
            cells += [f"{found['write_mb']:,.0f}", f"{found['write_mb'] - found['start_mb']:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds(found: dict[str, float]) -> float:
    return found["build_s"] + found["write_s"]


def growth(results: dict[int, dict[str, dict[str, float]]]) -> str:
    """From the smallest to the largest size."""
    (few, first), *_, (many, last) = results.items()
    lines = [f"From {few:,} to {many:,} rows:", ""]
    for method in METHODS:
        cost = (last[method]["cpu_s"] / many) / (first[method]["cpu_s"] / few)
        memory = (last[method]["write_mb"] - first[method]["write_mb"]) * 2**20 / (many - few)
        lines.append(
            f"- {method}: a row costs {cost:.2f} times the CPU time; {memory:,.0f} bytes of anonymous memory a row"
        )
    again = last["ours, cached"]["build_s"] / last["ours"]["build_s"]
    return "\n".join([*lines, f"- the cached build takes {again:.1%} of the first one's time, at {many:,} rows"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the figures as JSON")
    parser.add_argument("--measure", nargs=3, metavar=("METHOD", "FOLDER", "OUTPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        method, folder, output = args.measure
        print(json.dumps(measure(method, Path(folder), Path(output))))
        return
    results = {}
    for rows in sorted(args.rows):
        with tempfile.TemporaryDirectory() as folder:
            results[rows] = compare(Path(folder), rows, args.repeats)
    print(table(results))
    if len(results) > 1:
        print(f"\n{growth(results)}")
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
