"""What a model may call while it answers: named tools, your own functions in a process of their own, environments."""

from ..imports import lazy_names

_HOMES = {
    "calculator": ["evaluate"],
    "environments": ["environment_schemas", "environment_tools", "failure_of", "load_environments"],
    "guarded": ["OfferedTools"],
    "tool_registry": ["PRESETS", "TOOLS", "load_tools", "offered_names", "tool_schemas"],
    "tool_process": ["ToolFailure", "ToolLimits"],
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
