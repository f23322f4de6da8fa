"""`minimind-trl init DIR`: a folder with data, a mixture, a config and a README to begin with."""

import argparse
import shutil
from pathlib import Path

from ..errors import InputError
from ..files import atomic_path

STARTER = Path(__file__).parent / "starter"


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add the `init` verb."""
    what = "make a folder with a commented mixture, a config and a README to begin with"
    parser = verbs.add_parser("init", help=what, description=what)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new or empty folder")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    folder = args.folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give a new folder")
    try:
        with atomic_path(folder.absolute()) as temporary:
            shutil.copytree(STARTER, temporary)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    for file in sorted(path.name for path in folder.iterdir()):
        print(f"wrote {folder / file}")
    print(f"next: minimind-trl sft --config {folder / 'sft.yaml'}")
