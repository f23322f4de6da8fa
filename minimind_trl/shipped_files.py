"""The recipes and configs that come with the package: in a clone beside it, once installed inside it."""

from pathlib import Path

from .errors import nearest

ACCELERATE_CONFIGS = "accelerate_configs"
DATA_CONFIGS = "data_configs"
RECIPE_CONFIGS = "recipes/configs"


def shipped_root() -> Path:
    """The folder that holds `recipes/`, `data_configs/` and `accelerate_configs/`."""
    package = Path(__file__).parent
    installed = package / "shipped"  # where setup.py puts them
    return installed if installed.is_dir() else package.parent


def find_config(name: str, *folders: str) -> str:
    """Find a config by its path, or a shipped one by its name, such as `zero2` in accelerate_configs.

    Args:
        folders: shipped folders that may hold it. A path that begins with one of them, such as
            `accelerate_configs/zero2.yaml`, is also found.

    Returns:
        The path of a file; `name` itself if there is no such config.
    """
    path = Path(name)
    if not name or path.is_absolute() or (path.exists() and not path.is_dir()):
        return name
    root = shipped_root()
    candidates = [root / folder / f"{name}.yaml" for folder in folders]
    candidates += [root / path for folder in folders if path.parts[:1] == Path(folder).parts[:1]]
    return next((str(candidate) for candidate in candidates if candidate.is_file()), name)


def nearest_config(name: str, *folders: str) -> str:
    """`; did you mean 'x'?` if a shipped config has nearly this name or path; otherwise an empty string."""
    root = shipped_root()
    for folder in folders:
        known = [path.relative_to(root / folder).with_suffix("").as_posix() for path in (root / folder).rglob("*.yaml")]
        if hint := nearest(name.removeprefix(f"{folder}/").removesuffix(".yaml"), sorted(known)):
            return hint
    return ""
