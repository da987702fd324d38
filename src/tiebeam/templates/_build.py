"""What `tiebeam template build` does: reads its flags, has a platform make its files, and writes them into a folder.

A platform is a module with `TARGET_FLAGS`, the flags that it understands besides those of every platform, and `build(settings)`, which
gives its files by name. Flags of the pipeline itself are written into the files as its settings.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tiebeam import registry, wheel
from tiebeam.errors import ConfigError, Problem
from tiebeam.templates._parameters import Parameter, Pipeline

OF_EVERY_TARGET = {"target", "output", "image"}
PLACEHOLDER = "CHANGE_ME"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Settings:
    """What was asked for: a pipeline, flags of the platform, flags of the pipeline."""

    pipeline: str
    target: str
    output: Path
    given: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str, default: str) -> str:
        """A flag of the platform."""
        return self.given.get(name) or default


def settings(argv: list[str]) -> Settings:
    """Reads the flags; raises ConfigError with all that is wrong with them."""
    names = [word for word in argv if not word.startswith("--")]
    given = dict(word[2:].partition("=")[::2] for word in argv if word.startswith("--"))
    given = {name.replace("-", "_"): value for name, value in given.items()}
    if len(names) != 1 or "target" not in given:
        usage = f"tiebeam template build PIPELINE --target={'|'.join(registry.TARGETS)} [--output=DIR] [--flags of the pipeline]"
        raise ConfigError(Problem("takes one pipeline and a target", "template build", usage))
    target = registry.target(given["target"])
    registry.pipeline(names[0])
    own = OF_EVERY_TARGET | target.TARGET_FLAGS
    output = Path(given.get("output") or f"work/templates/{names[0]}-{given['target']}")
    flags = {name: value for name, value in given.items() if name not in own}
    return Settings(names[0], given["target"], output, {n: v for n, v in given.items() if n in own}, flags)


def build(argv: list[str]) -> tuple[Settings, list[Path]]:
    """Makes the files of a template and writes them; gives the settings and the files, the one to read first in front."""
    asked = settings(argv)
    files: dict[str, Any] = dict(registry.target(asked.target).build(asked))
    if "Dockerfile" in files:
        files |= worker_files()
    asked.output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = asked.output / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if path.suffix == ".sh":
            path.chmod(0o755)
    return asked, [asked.output / name for name in files]


def worker_files() -> dict[str, Any]:
    """What is installed where the Python of a job runs: packages held to the hashes of their files, and the tiebeam that runs now."""
    name, content = wheel.made()
    return {"requirements.txt": (_HERE / "files" / "requirements.txt").read_text(encoding="utf-8"), name: content}


def rendered(name: str, values: Mapping[str, str]) -> str:
    """A file of `files/` with its @WORDS@ replaced; one that stays is an error of ours."""
    text = (_HERE / "files" / f"{name}.in").read_text(encoding="utf-8")
    for word, value in {"BEAM": metadata.version("apache-beam"), "WHEEL": wheel.name(), **values}.items():
        text = text.replace(f"@{word}@", value)
    return text


def chosen(p: Pipeline, asked: Settings) -> dict[str, str]:
    """The pipeline's flags for the files: those given, then what is required but was not given, with its example."""
    known = {one.name: one for one in p.parameters}
    problems = [_unknown(name, known) for name in asked.flags if name not in known]
    problems += [p for n, v in asked.flags.items() if n in known for p in _refused(known[n], v)]
    if problems:
        raise ConfigError(*problems)
    values = {one.name: asked.flags.get(one.name) or one.option.example or PLACEHOLDER for one in p.parameters if one.required}
    for one in p.parameters:
        if one.option.required and one.parent and values.get(one.parent, asked.flags.get(one.parent)) in one.parents:
            values.setdefault(one.name, asked.flags.get(one.name) or one.option.example or PLACEHOLDER)
    return {one.name: (values | dict(asked.flags))[one.name] for one in p.parameters if one.name in values or one.name in asked.flags}


def _unknown(name: str, known: Iterable[str]) -> Problem:
    near = difflib.get_close_matches(name, [*known, *OF_EVERY_TARGET], n=1)
    return Problem("there is no such option", f"--{name}", f"did you mean --{near[0]}?" if near else "see tiebeam describe")


def _refused(parameter: Parameter, value: str) -> Iterator[Problem]:
    try:
        parameter.option.read(value)
    except ValueError as e:
        yield Problem(str(e), f"--{parameter.name}", parameter.help)
    if parameter.choices and value not in parameter.choices:
        yield Problem(f"{value!r} is not one of {', '.join(parameter.choices)}", f"--{parameter.name}", parameter.help)


def endless(asked: Settings) -> str | None:
    """The source chosen by the flags that goes on without end, if there is one."""
    name = asked.flags.get("source")
    source: Any = registry.connector("source", name) if name else None
    return name if source and not source.bounded and "source_until" not in asked.flags else None


def as_yaml(flags: Mapping[str, str]) -> str:
    """Flags as a file of options."""
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in flags.items())


def options_table(p: Pipeline) -> str:
    """The parameters as a table of Markdown."""
    lines = ["| parameter | needed | default | meaning |", "|---|---|---|---|"]
    for one in p.parameters:
        when = f" Only with `{one.parent}` {', '.join(f'`{c}`' for c in one.parents)}." if one.parent else ""
        choices = f" One of {', '.join(f'`{c}`' for c in one.choices)}." if one.choices else ""
        default = f"`{one.default}`" if one.default else ""
        needed = "yes" if one.required else "with it" if one.option.required else ""
        lines.append(f"| `{one.name}` | {needed} | {default} | {one.help}{choices}{when} |")
    return "\n".join(lines)
