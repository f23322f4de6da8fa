"""Near-duplicates inside a mixture, and overlap with evaluation sets."""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from ..errors import MixtureError

# Words; characters of scripts that put no spaces between them (Chinese, Japanese) count as words.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")
CONTAMINATED = "shares a run of words with an evaluation set"
_SHINGLE = 5
_PERMUTATIONS = 128
_SHORTEST = 8  # shorter runs of words are common phrases; GPT-3's minimum


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


class NGrams:
    """Runs of `size` words of texts that must not be trained on (13 in GPT-3, arXiv 2005.14165, appendix C).

    A shorter text is one run; one of fewer than 8 words matches only texts that consist of it.
    """

    def __init__(self, texts: Iterable[str], size: int):
        self.size = size
        self.runs = {run for text in texts for run in self._of(text)}
        self._lengths = {len(run.split()) for run in self.runs}

    def overlap(self, text: str) -> bool:
        """Whether the text shares a run."""
        found = words(text)
        lengths = (n for n in self._lengths if n >= min(self.size, _SHORTEST) or n == len(found))
        return any(run in self.runs for length in lengths for run in _runs(found, length))

    def _of(self, text: str) -> Iterator[str]:
        found = words(text)
        if 0 < len(found) < self.size:
            yield " ".join(found)
        yield from _runs(found, self.size)


def _runs(found: list[str], size: int) -> Iterator[str]:
    return (" ".join(found[i : i + size]) for i in range(len(found) - size + 1))


def near_duplicates(texts: Iterable[str], threshold: float) -> np.ndarray:
    """Mark the texts that are near-duplicates of an earlier one.

    MinHash with locality-sensitive hashing (Broder 1997), by the datasketch library, on word 5-grams. Holds the
    signatures of the kept texts in memory (about 6 kB each).

    Returns:
        boolean, one per text; the first of each cluster is not marked.

    Raises:
        MixtureError: datasketch is not installed.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise MixtureError("dedup: near needs the datasketch library: pip install 'minimind-trl[data]'") from error
    # The index proposes and the signatures' estimate decides, so the index may propose too many.
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
    empty = MinHash(num_perm=_PERMUTATIONS)
    kept: dict[int, MinHash] = {}
    marked = []
    for number, text in enumerate(texts):
        signature = empty.copy()  # drawing permutations takes longer than applying them
        signature.update_batch([shingle.encode() for shingle in _shingles(text)])
        marked.append(any(kept[other].jaccard(signature) >= threshold for other in index.query(signature)))
        if not marked[-1]:
            index.insert(number, signature)
            kept[number] = signature
    return np.array(marked, dtype=bool)


def _shingles(text: str) -> list[str]:
    found = words(text)
    return list(_runs(found, _SHINGLE)) or [" ".join(found) or text]
