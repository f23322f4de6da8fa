"""Whether two checkouts train the same bits: ten steps of five recipes with a fixed seed, hashed.

    python tests/same_bits.py FOLDER [CHECKOUT] > a.txt    # the checkout this file is in, unless another is given
    diff a.txt b.txt

One line for each recipe: the weights, and the figures of its log without those about time.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

COMMON = {"max_steps": 10, "logging_steps": 1, "eval_interval": 5, "eval_batches": 1, "seed": 7, "report_to": "none"}
ONLINE = {"per_device_train_batch_size": 32, "per_device_eval_batch_size": 16, "num_generations_eval": 1}
RUNS = {
    "sft": {"preset": "tiny", "from_weight": None, "save_strategy": "steps", "save_steps": 10},
    "dpo": {},
    "grpo": ONLINE,
    "ppo": ONLINE,
    "spo": ONLINE,
}
CLOCK = ("runtime", "per_second", "mfu", "eta", "time")


def train(recipe: str, folder: Path, checkout: Path) -> None:
    options = {"config": f"recipes/configs/{recipe}/tiny.yaml", "output_dir": folder / recipe, **COMMON}
    options |= {"from_weight": folder / "sft", "save_strategy": "steps", "save_steps": 10, **RUNS[recipe]}
    if options["from_weight"] is None:  # the config names one
        config = (checkout / options["config"]).read_text(encoding="utf-8").splitlines()
        options["config"] = folder / "sft.yaml"
        options["config"].write_text("\n".join(line for line in config if not line.startswith("from_weight")))
    words = [str(part) for name, value in options.items() if value is not None for part in (f"--{name}", value)]
    command = [sys.executable, f"recipes/{recipe}.py", *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{recipe}: {done.stderr}")


def fingerprint(folder: Path) -> str:
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    history = json.loads((folder / "checkpoint-10" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    figures = [{k: v for k, v in entry.items() if not any(word in k for word in CLOCK)} for entry in history]
    logs = hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()[:16]
    return f"weights {weights}, {len(figures)} log entries {logs}"


def main(folder: str, checkout: str = str(Path(__file__).resolve().parents[1])) -> None:
    base = Path(folder).resolve()
    base.mkdir(parents=True, exist_ok=True)
    for recipe in RUNS:
        train(recipe, base, Path(checkout))
        print(f"{recipe}: {fingerprint(base / recipe)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
