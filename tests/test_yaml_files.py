"""Untrusted YAML: aliases as people write them, and aliases that would exhaust memory."""

import pytest
import yaml

from minimind_trl.yaml_files import AliasError, load_yaml

LEVELS = range(1, 12)
LISTS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in LEVELS)
MAPPINGS = "a0: &a0 {k: lol}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(10))}}}\n" for n in LEVELS
)
MERGED = "a0: &a0 {k: lol}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n  k{n}: 1\n" for n in LEVELS
)
ONE_LONG_TEXT = f"a: &a {'x' * 50_000}\nb: [{', '.join(['*a'] * 1000)}]\n"
BOMBS = {"lists": LISTS, "mappings": MAPPINGS, "merged": MERGED, "one long text": ONE_LONG_TEXT}


@pytest.mark.parametrize("name", BOMBS)
def test_nested_aliases_are_refused_before_they_are_expanded(name):
    assert len(BOMBS[name]) < 60_000
    with pytest.raises(AliasError, match=r"aliases .* expand to more than .* characters"):
        load_yaml(BOMBS[name])


def test_usual_aliases_are_accepted():
    text = "rules: &rules [{type: length, min_length: 20}]\nsources:\n" + "".join(
        f"- {{name: s{n}, filters: *rules}}\n" for n in range(50)
    )
    node, content = load_yaml(text)
    assert isinstance(node, yaml.MappingNode)
    assert [source["filters"] for source in content["sources"]] == [[{"type": "length", "min_length": 20}]] * 50


def test_a_large_file_without_aliases_is_accepted():
    _, content = load_yaml("".join(f"- {'a long line of text' * 20}, number {n}\n" for n in range(500)))
    assert len(content) == 500


def test_an_alias_inside_its_own_anchor_is_kept():
    _, content = load_yaml("a: &a [*a]\n")
    assert content["a"][0] is content["a"]


def test_an_empty_file():
    assert load_yaml("") == (None, None)
