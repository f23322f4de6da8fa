import json
from pathlib import Path

import datasets
import pytest
import yaml


@pytest.fixture(autouse=True, scope="session")
def fresh_cache(tmp_path_factory):
    """What the mixer converted is cached by `datasets`; a test must not find what an older run left."""
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    datasets.disable_progress_bars()
    yield
    patch.undo()


@pytest.fixture
def write(tmp_path):
    """Write JSONL files and a mixture over them: `write({"a": rows}, ratios={"a": 1.0})` gives the mixture's path."""

    def write_mixture(sources: dict[str, list], phase="pretrain", ratios=None, options=None, **extra) -> Path:
        declared = []
        for name, rows in sources.items():
            text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
            ratio = (ratios or {}).get(name, 1 / len(sources))
            declared.append({"name": name, "source": f"{name}.jsonl", "mix_ratio": ratio, **(options or {})})
        path = tmp_path / "mixture.yaml"
        metadata = {"phase": phase, **extra.pop("metadata", {})}
        path.write_text(yaml.safe_dump({"metadata": metadata, "datasets": declared, **extra}))
        return path

    return write_mixture
