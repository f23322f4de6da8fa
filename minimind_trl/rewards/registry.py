"""Build reward functions from their specs on the command line or in YAML."""

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import InputError, nearest, one_line, raise_all
from ..imports import import_function, refuse_foreign
from ..yaml_files import load_yaml
from . import functions, tool_rewards
from .reward import Reward
from .reward_models import RewardModel, is_reward_model

_SHARE = (0, 1)
_CALLED = "a reward is called as function(prompts=..., completions=..., completion_ids=..., **every_column)"

# Name: function, and its lowest and highest value, or a function that computes them from its parameters.
REWARDS: dict[str, tuple[Callable, tuple[float, float] | Callable[..., tuple[float, float]]]] = {
    "exact_match": (functions.exact_match, _SHARE),
    "position_match": (functions.position_match, _SHARE),
    "math_accuracy": (functions.math_accuracy, _SHARE),
    "regex": (functions.regex, _SHARE),
    "think_format": (functions.think_format, _SHARE),
    "tag_count": (functions.tag_count, _SHARE),
    "length": (functions.length, lambda inside, outside, **_: (min(inside, outside), max(inside, outside))),
    "repetition_penalty": (functions.repetition_penalty, lambda cap, **_: (-cap, 0)),
    "thinking": (functions.thinking, (-0.75, 1.25)),
    "tool_calls": (functions.tool_calls, _SHARE),
    "call_match": (tool_rewards.call_match, _SHARE),
    "result_match": (tool_rewards.result_match, _SHARE),
    "reasoning_gym": (functions.reasoning_gym, _SHARE),
}

# MiniMind's own mixes (train_grpo.py of each generation): `minimind3:reward_model=PATH`.
PRESETS: dict[str, tuple[tuple[str, float], ...]] = {
    "minimind2": (
        ("tag_count", 1.0),
        (r"regex:pattern='<think>\n.*?\n</think>\n+<answer>\n.*?\n</answer>'", 0.5),
        ("reward_model:{reward_model},answer_share=0.6", 1.0),
    ),
    "minimind3": (
        ("length:low=20,high=800,unit=characters,inside=0.5,outside=-0.5", 1.0),
        ("thinking", 1.0),
        ("repetition_penalty", 1.0),
        ("reward_model:{reward_model},answer_only=true", 1.0),
    ),
}


def load_rewards(
    specs: Sequence[str], weights: Sequence[float] | None = None, option: str = "--reward_funcs"
) -> tuple[list[Reward], list[float]]:
    """Build reward functions and their weights.

    Args:
        specs: each is one of

            - a name in `REWARDS`, with its parameters if it has any: `length:low=5,high=20`;
            - `reward_model:PATH`, with `RewardModel`'s parameters, or just the path of a reward model;
            - a preset: `minimind3:reward_model=PATH`;
            - `module:function`, your own function, from the working directory or an installed package; its attributes
              `low` and `high` may give its range.
        weights: one per spec, 1 by default. A preset's weight multiplies the weights inside the preset.
        option: that gave the specs, for messages.

    Raises:
        InputError: one line for every invalid spec.
    """
    if not specs:
        raise InputError("no reward: give --reward_funcs, such as exact_match or the folder of a reward model")
    weights = [1.0] * len(specs) if weights is None else list(weights)
    if len(weights) != len(specs):
        raise InputError(f"--reward_weights has {len(weights)} values, --reward_funcs {len(specs)}: give one for each")
    rewards, shares, problems = [], [], []
    for spec, weight in zip(specs, weights, strict=True):
        try:
            for part, share in _expanded(str(spec)):
                rewards.append(_load(part))
                shares.append(share * weight)
        except InputError as error:
            problems.append(f"{option} {spec}: {error}")
    names = [reward.__name__ for reward in rewards]
    problems += [f"{option}: {name} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
    raise_all(problems)
    return rewards, shares


def reward_name(spec: str) -> str:
    """The name in logs of a spec's reward function, or of its first."""
    name, _, rest = spec.partition(":")
    if name in PRESETS:
        return reward_name(PRESETS[name][0][0])
    if name in REWARDS:
        return name
    return "reward_model" if name == "reward_model" or is_reward_model(spec) else rest or name


def _expanded(spec: str) -> list[tuple[str, float]]:
    name, _, rest = spec.partition(":")
    if name not in PRESETS:
        return [(spec, 1.0)]
    given = _parameters(rest)
    if set(given) != {"reward_model"}:
        raise InputError(f"this preset needs a reward model and takes nothing else: {name}:reward_model=PATH")
    return [(part.format(**given) if "{reward_model}" in part else part, share) for part, share in PRESETS[name]]


def _load(spec: str) -> Reward:
    name, _, rest = spec.partition(":")
    if name in REWARDS:
        function, ends = REWARDS[name]
        function = partial(function, **_checked(function, _parameters(rest)))
        if callable(ends):
            parameters = inspect.signature(function).parameters.values()
            ends = ends(**{p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY})
        return Reward(function, name, *ends)
    if name == "reward_model" or is_reward_model(spec):
        path, _, options = (rest if name == "reward_model" else spec).partition(",")
        model = RewardModel(path, **_checked(RewardModel, _parameters(options)))
        return Reward(model, "reward_model", model.low, model.high)
    if rest:
        if "" not in sys.path:
            sys.path.insert(0, "")  # as with `python -m`; otherwise a script's own folder comes first
        refuse_foreign(spec, "reward", _CALLED)
        function = import_function(spec)
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            raise InputError(f"{rest}{inspect.signature(function)} does not accept further columns (**_): {_CALLED}")
        return Reward(function, rest)
    known = [*REWARDS, *PRESETS, "reward_model"]
    raise InputError(
        f"no such reward{nearest(name, known)}; known: {', '.join(known)}, a model's path, module:function"
    )


def _parameters(text: str) -> dict[str, Any]:
    """`low=5,high=20` as a mapping; a quoted value may contain commas."""
    parts, quoted = [""], False
    for character in text:
        quoted ^= character == "'"
        if character == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    pairs = [part.partition("=") for part in parts if part]
    if any(not equals for _, equals, _ in pairs):
        raise InputError(f"{text!r} is not name=value,name=value")
    return {name.strip(): value[1:-1] if value[:1] == "'" else _plain(value) for name, _, value in pairs}


def _plain(text: str) -> Any:
    try:
        return load_yaml(text)[1]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{text:.80} is not a value ({one_line(error):.80}); quote text: name='...'") from error


def _checked(function: Callable, given: dict[str, Any]) -> dict[str, Any]:
    """Validate parameters by the declared types: a function's keyword-only ones, or all of a class but the first."""
    signature = list(inspect.signature(function).parameters.items())
    is_class = inspect.isclass(function)
    known = dict(signature[1:]) if is_class else {name: p for name, p in signature if p.kind is p.KEYWORD_ONLY}
    for name in given:
        if name not in known:
            raise InputError(f"no parameter {name!r}{nearest(name, known, listed=True)}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in given]
    if missing:
        raise InputError(f"needs {', '.join(missing)}: name:{missing[0]}=VALUE")
    try:
        return {name: TypeAdapter(known[name].annotation).validate_python(value) for name, value in given.items()}
    except ValidationError as error:
        raise InputError(f"{error.errors()[0]['msg']}: {error.errors()[0]['input']!r}") from error
