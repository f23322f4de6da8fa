"""YAML of others, read without running anything from it and without unfolding what stands for more than it says."""

from typing import Any

import yaml

_SMALL = 100_000  # characters and values that any text may stand for
_TIMES = 10  # its own length that a longer one may


class AliasError(yaml.YAMLError):
    """Aliases that repeat aliases: a few lines that stand for more than a memory holds ("billion laughs")."""


def load_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """A YAML document as nodes, which know their lines, and as plain values; (None, None) of an empty one.

    Aliases (`*name`) are followed as far as people write them: until they stand for ten times the text.

    Raises:
        yaml.YAMLError: it is not YAML, or its aliases stand for too much (`AliasError`).
        ValueError: a date that does not exist.
        RecursionError: nested too deeply.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    most = max(_SMALL, _TIMES * len(text))
    if node is not None and _size(node, {}, set()) > most:
        raise AliasError(f"its aliases (*name) stand for more than {most:,} characters; write out what they repeat")
    return node, yaml.safe_load(text)


def _size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Values and their characters, with every alias written out; one that stands in itself counts once."""
    if id(node) in above:
        return 1
    if id(node) not in known:
        above.add(id(node))
        if isinstance(node, yaml.MappingNode):
            inner = sum(_size(part, known, above) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            inner = sum(_size(part, known, above) for part in node.value)
        else:
            inner = len(node.value)
        above.remove(id(node))
        known[id(node)] = 1 + inner
    return known[id(node)]
