"""Safe reading of untrusted YAML: no code is run, and aliases cannot expand without limit."""

from typing import Any

import yaml

_ALWAYS_ALLOWED = 100_000  # expanded characters and values that any text may have
_MAX_EXPANSION = 10  # times its own length that a longer text may expand to


class AliasError(yaml.YAMLError):
    """Nested aliases expand a few lines to more than fits in memory ("billion laughs")."""


def load_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """A YAML document as nodes, which know their lines, and as plain values; (None, None) if it is empty.

    Aliases (`*name`) may expand to ten times the text, which is more than people write by hand.

    Raises:
        yaml.YAMLError: the text is not YAML, or its aliases expand too far (`AliasError`).
        ValueError: a date does not exist.
        RecursionError: the document is nested too deeply.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    limit = max(_ALWAYS_ALLOWED, _MAX_EXPANSION * len(text))
    if node is not None and _size(node, {}, set()) > limit:
        raise AliasError(f"its aliases (*name) expand to more than {limit:,} characters; write out what they repeat")
    return node, yaml.safe_load(text)


def _size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Number of values plus their characters, with every alias expanded; an alias inside itself counts once."""
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
