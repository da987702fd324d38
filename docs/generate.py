"""Writes docs/generated/ from the code, the table of the laws in docs/runners.md, and that of types in docs/bigquery.md.

python docs/generate.py           write
python docs/generate.py --check   exit 1 when a page is not as the code would have it
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tiebeam import cli, registry
from tiebeam.errors import ConfigError
from tiebeam.templates import _build

FOLDER = Path(__file__).parent
TESTS = Path(__file__).parents[1] / "tests"
LAWS, END = "<!-- Written by docs/generate.py from tests/laws: do not edit. -->", "<!-- end -->"
TYPES = "<!-- Written by docs/generate.py from src/tiebeam/io/_bigquery_types.py: do not edit. -->"
NOTE = "<!-- Written by docs/generate.py from the code: do not edit. -->\n\n"


def option_rows(options: list[dict[str, Any]], prefix: str) -> list[str]:
    lines = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for o in options:
        default = "required" if o["required"] else "" if o["default"] in (None, ()) else f"`{o['default']}`"
        kind = ", ".join(f"`{c}`" for c in o["choices"]) or o["type"]
        unit = f", in {o['unit']}" if o["unit"] else ""
        example = f" Example: `{prefix}{o['name']}={o['example']}`." if o["example"] else ""
        meaning = f"{o['help']}{unit}.{example}".replace("|", "\\|")
        lines.append(f"| `{prefix}{o['name']}` | {kind} | {default} | {meaning} |")
    return lines


def connector_page() -> str:
    parts = ["# Connectors\n"]
    for name in registry.CONNECTORS:
        about = cli._about_connector(name)
        parts.append(f"## {name}\n\n{about['about']}\n")
        for role in ("source", "sink"):
            if role in about:
                can = "; ".join(f"{k}: {({True: 'yes', False: 'no'}).get(v, v)}" for k, v in about[role]["capabilities"].items())
                parts.append(f"### `--{role}={name}` ({about[role]['class']})\n\n{can}\n")
                parts.append("\n".join(option_rows(about[role]["options"], f"--{role}_")) + "\n")
    return NOTE + "\n".join(parts)


def pipeline_page() -> str:
    parts = ["# Pipelines\n"]
    for name in registry.PIPELINES:
        about = cli._about_pipeline(name)
        parts.append(f"## {name}\n\n{about['about']}\n")
        parts.append("\n".join(option_rows(about["options"], "--")) + "\n")
    return NOTE + "\n".join(parts)


def runners_page() -> str:
    """The page of runners as it is, its table of the laws written anew: the ways of tests/laws against the transforms."""
    sys.path.insert(0, str(TESTS))
    from laws.cases import by_transform
    from laws.ways import WAYS

    lines = ["| transform | " + " | ".join(way.name for way in WAYS) + " |", "|---|" + "---|" * len(WAYS)]
    gaps = []
    for transform, cases in by_transform().items():
        cells = []
        for way in WAYS:
            able = [case for case in cases if case.streams or not way.endless]
            missing = [case.name for case in able if case.name in way.gaps]
            gaps += [f"- {name}, {way.name}: {way.gaps[name]}" for name in missing]
            cells.append(f"{len(able) - len(missing)} of {len(able)}" if missing else f"all {len(able)}" if able else "bounded only")
        lines.append(f"| `{transform}` | " + " | ".join(cells) + " |")
    table = "\n".join([*lines, "", *(gaps or ["No gaps."])])
    before, rest = (FOLDER / "runners.md").read_text(encoding="utf-8").split(LAWS, 1)
    return before + LAWS + "\n\n" + table + "\n\n" + END + rest.split(END, 1)[1]


def bigquery_page() -> str:
    """The page of BigQuery as it is, its table of types written anew."""
    from tiebeam.io._bigquery_types import mapping

    lines = ["| Arrow | BigQuery | read back as |", "|---|---|---|"]
    lines += [f"| `{kind}` | {column} | {f'`{back}`' if back and column != 'refused' else back} |" for kind, column, back in mapping()]
    before, rest = (FOLDER / "bigquery.md").read_text(encoding="utf-8").split(TYPES, 1)
    return before + TYPES + "\n\n" + "\n".join(lines) + "\n\n" + END + rest.split(END, 1)[1]


def templates() -> dict[str, str]:
    """The files of every template as `tiebeam template build` makes them, and why there are none where there are none."""
    pages, rows = {}, []
    for name in registry.PIPELINES:
        cells = []
        for target in registry.TARGETS:
            folder = f"generated/templates/{name}/{target}"
            try:
                files = registry.target(target).build(_build.Settings(name, target, Path(folder)))
            except ConfigError as e:
                cells.append(e.problems[0].what)
                continue
            cells.append(f"[{target}]({name}/{target}/README.md)")
            pages |= {f"{folder}/{file}": text for file, text in files.items() if isinstance(text, str) and file != "requirements.txt"}
        rows.append(f"| {name} | {' | '.join(cells)} |")
    head = f"| pipeline | {' | '.join(registry.TARGETS)} |\n|---|{'---|' * len(registry.TARGETS)}\n"
    pages["generated/templates/README.md"] = f"{NOTE}# Templates\n\n{_ABOUT}\n\n{head}" + "\n".join(rows) + "\n"
    return pages


_ABOUT = "As `tiebeam template build PIPELINE --target=TARGET` makes them, but for the wheel and the hashed requirements, which it adds."


PAGES = {
    "generated/connectors.md": connector_page,
    "generated/pipelines.md": pipeline_page,
    "runners.md": runners_page,
    "bigquery.md": bigquery_page,
}


def main(check: bool) -> int:
    stale = []
    texts = {name: page() for name, page in PAGES.items()} | templates()
    for path in FOLDER.glob("generated/templates/**/*"):
        if path.is_file() and str(path.relative_to(FOLDER)) not in texts:
            stale.append(str(path.relative_to(FOLDER)))
            if not check:
                path.unlink()
    for name, text in texts.items():
        target = FOLDER / name
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"not as the code would have it: {', '.join(stale)}; run `make docs`", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
