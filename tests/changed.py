"""Prints the test files that a change touches, for `make test-changed`: a quick look in daily work, not a verdict.

    python -m tests.changed [REVISION]

The change is what differs from a revision (HEAD, unless another is given), files that git does not know included. A
test file is touched that is changed itself, or that names the room of a changed file: by import
(`minimind_trl.trainers` of minimind_trl/trainers/ppo_trainer.py) or by path (`recipes/`, `data_configs/`).
"""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def changed_files(revision: str) -> set[str]:
    tracked = _git("diff", "--name-only", "--relative", revision)
    return {*tracked, *_git("ls-files", "--others", "--exclude-standard")}


def room(path: str) -> str | None:
    """What the tests of a file have in their text; None of a file that no test is about."""
    top, *rest = Path(path).parts
    if top == "minimind_trl" and rest:
        return f"minimind_trl.{rest[0].removesuffix('.py')}"
    if top == "tests" and path.endswith(".py"):
        return ".".join(Path(path).with_suffix("").parts)
    return f"{top}/" if rest else None


def touched_tests(files: set[str]) -> list[str]:
    rooms = {found for found in map(room, files) if found and found != "minimind_trl.__init__"}
    tests = sorted(REPOSITORY.glob("tests/**/test_*.py"))
    names = {test: str(test.relative_to(REPOSITORY)) for test in tests}
    return [name for test, name in names.items() if name in files or _names_one(test, rooms)]


def _names_one(test: Path, rooms: set[str]) -> bool:
    text = test.read_text(encoding="utf-8")
    conftest = test.with_name("conftest.py")
    text += conftest.read_text(encoding="utf-8") if conftest.exists() else ""
    return any(name in text for name in rooms)


def _git(*arguments: str) -> list[str]:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()


if __name__ == "__main__":
    print(*touched_tests(changed_files(*sys.argv[1:] or ["HEAD"])), sep="\n")
