"""`samples.jsonl`: what a model said at a few moments of its training, token by token."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..files import atomic_path

SAMPLES = "samples.jsonl"
MOMENTS = 4  # of a training, from its start to its end
AT_A_MOMENT = 8  # samples of one kind
MOST_TOKENS = 512  # of a sample; the rest is left out
_CHARACTER = 4  # bytes at most, in UTF-8

Sample = dict[str, Any]


class SampleFile:
    """Adds samples to a run's `samples.jsonl`, one JSON object a line, each with its `kind` and `step`.

    Samples of the evaluation before training wait until it begins, so that a run that fails before leaves nothing.

    Kinds, and what they have besides `prompt` (messages or text) and `tokens` (texts):
        - `loss`: a held-out row with the `losses` of its tokens in nats, None where there is none; `source`;
        - `answer`: the `answer` to a held-out prompt; the `right` answer and the `reward`, if known;
        - `pair`: a held-out pair; `chosen` and `rejected` have `tokens` and `log_ratios`, policy to reference in nats;
        - `score`: the reward model's `scores` of a held-out pair's texts `chosen` and `rejected`;
        - `rollout`: an answer that was trained on; see `trainers/rollout_samples.py`.
    """

    def __init__(self, folder: Path):
        self.path = folder / SAMPLES
        self._last: dict[str, int] = {}  # the latest step of each kind
        self._waiting: list[Sample] | None = []  # None once training has begun
        self._failed = False

    def begin(self, step: int) -> None:
        """Training begins, or goes on from this step: later samples are dropped, because they come again."""
        kept = [sample for sample in read_samples(self.path) if sample["step"] <= step] if step else []
        known = {sample["kind"] for sample in kept}
        kept += [sample for sample in self._waiting or [] if sample["kind"] not in known]
        self._waiting = None
        with self._reporting_errors(), atomic_path(self.path) as temporary:
            temporary.write_text(_lines(kept), encoding="utf-8")
        self._last = {sample["kind"]: sample["step"] for sample in sorted(kept, key=lambda sample: sample["step"])}

    def is_due(self, kind: str, step: int, last_step: int) -> bool:
        """Whether samples of a kind are wanted at a step, so that the moments are spread over `last_step` steps."""
        if self._failed:
            return False
        if kind not in self._last:
            return True
        last, parts = self._last[kind], MOMENTS - 1
        return any(last * parts < number * last_step <= step * parts for number in range(1, MOMENTS))

    def add(self, kind: str, step: int, samples: Iterable[Sample]) -> None:
        given = [{"kind": kind, "step": step, **sample} for sample in samples]
        self._last[kind] = step
        if self._waiting is not None:
            self._waiting += given
            return
        with self._reporting_errors(), self.path.open("a", encoding="utf-8") as file:
            file.write(_lines(given))

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        """Training goes on without samples if the disk takes none."""
        try:
            yield
        except OSError as error:
            self._failed = True
            print(
                f"warning: {self.path} cannot be written ({error.strerror or error}): no more samples", file=sys.stderr
            )


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, without a line that a killed run left unfinished; [] if there is no file."""
    if not path.is_file():
        return []
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            samples.append(json.loads(line))
        except ValueError:
            continue
    return samples


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token. A character of several tokens is the text of its last one, the others have none."""
    texts, start = [], 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        is_unfinished = text.endswith("\ufffd") and end - start < _CHARACTER
        texts.append("" if is_unfinished else text)
        start = start if is_unfinished else end
    return texts


def shown_prompt(prompt: Any) -> Any:
    """A prompt without the empty entries of its messages."""
    if isinstance(prompt, str):
        return prompt
    return [{name: value for name, value in message.items() if value is not None} for message in prompt]


def rounded(values: Iterable[float]) -> list[float | None]:
    """Values with four significant digits; None for what is not finite, which JSON cannot store."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def first_of_groups(keys: Sequence[Any], values: Sequence[float], each: int = AT_A_MOMENT // 2) -> list[int]:
    """Places of some members of some groups of neighbours with equal keys, in all at most `AT_A_MOMENT`.

    Groups whose values differ come first, and of a group members with different values, since there is more to see.
    """
    groups = []
    for _, members in groupby(range(len(keys)), key=lambda place: keys[place]):
        seen: Counter = Counter()
        ranked = []
        for place in members:
            ranked.append((seen[values[place]], place))
            seen[values[place]] += 1
        groups.append((len(seen) == 1, [place for _, place in sorted(ranked)]))
    groups.sort(key=lambda group: group[0])
    return [place for _, group in groups for place in group[:each]][:AT_A_MOMENT]


def _lines(samples: Iterable[Sample]) -> str:
    return "".join(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)
