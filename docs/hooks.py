"""What mkdocs needs besides its plugins: pages from other folders, and tables made from the sources."""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# On GitHub these lie beside what they describe. The site has them under the same names.
BESIDE = (
    *("accelerate_configs/README.md", "data_configs/README.md", "tests/README.md"),
    *("benchmarks/README.md", "benchmarks/gpu.md", "benchmarks/rl.png"),
)
_OPTIONS = re.compile(r"<!-- options (\S+) (\w+) -->")


def on_files(files, config):
    for name in BESIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri in BESIDE:
        return markdown.replace("](../docs/", "](../")
    markdown = _OPTIONS.sub(lambda match: _options(*match.groups()), markdown.replace("](../", "]("))
    return markdown.replace("<!-- files -->", _files())


def _files() -> str:
    """Every module of the package with the first line of its docstring."""
    package = ROOT / "minimind_trl"
    rows = []
    for path in sorted(package.glob("**/*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append((f"`{path.relative_to(package)}`", docstring.partition("\n")[0]))
    return _table(("file", ""), rows)


def _options(file: str, name: str) -> str:
    """The fields of a config's dataclass that have a help text; those of its bases are not repeated."""
    [config] = [node for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if _is_class(node, name)]
    rows = []
    for option in config.body:
        if not isinstance(option, ast.AnnAssign) or not isinstance(option.value, ast.Call):
            continue
        values = {keyword.arg: keyword.value for keyword in option.value.keywords}
        if "metadata" in values:
            default = values.get("default", values.get("default_factory"))
            shown = "required" if default is None else f"`{ast.unparse(default)}`"
            rows.append((f"`{option.target.id}`", shown, ast.literal_eval(values["metadata"])["help"]))
    return _table(("option", "default", "meaning"), rows)


def _is_class(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.ClassDef) and node.name == name


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)
