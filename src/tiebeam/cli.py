"""The command `tiebeam`: from plans and runs to templates, and jobs on clusters.

Exit codes: 0 done; 1 the job failed; 2 the configuration is wrong and nothing was moved; 3 too many rows were
rejected; 130 interrupted. Beam and Arrow are loaded only by the verbs that need them.
"""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import MISSING
from functools import partial
from pathlib import Path
from typing import Any

from tiebeam import __version__, options, registry
from tiebeam.errors import ConfigError, Problem
from tiebeam.terminal import paragraphs, table, width

USAGE = """\
tiebeam: ready-made data pipelines on Apache Beam

  tiebeam list                      pipelines and connectors
  tiebeam describe NAME             options and capabilities of one
  tiebeam plan PIPELINE --flags     check everything, show schemas and graph; moves nothing
  tiebeam run PIPELINE --flags      plan, then run
  tiebeam replay --dead_letters=D   run rejected rows through their pipeline again
  tiebeam submit PIPELINE --flags   plan, then hand it to Flink, Spark or Dataflow; says the job's id and does not wait
  tiebeam status|drain|cancel|savepoint|update JOB   a job on Flink (--flink_master=) or Dataflow (--project= --region=)
  tiebeam top [JOB]                 how a stream on Flink is doing; --flink_master=HOST:PORT, --once
  tiebeam template build PIPELINE   what a platform needs to run it; --target=dataflow|flink|spark|airflow, --output=DIR
  tiebeam lab up|status|down        services on this machine to try things with (kafka, bigquery, pubsub, gcs); --folder=work/lab
  tiebeam completion SHELL          completion for bash, zsh or fish
  tiebeam --version

  list, describe, plan and run take --json. --options_file=FILE.yaml holds flags; those given win.
  Exit codes: 0 done, 1 failed, 2 wrong configuration, 3 too many rows rejected, 130 interrupted.

  tiebeam run ingest --source=jsonl --source_path='in/*.jsonl' --sink=parquet --sink_path=out/
"""

_VERBS = (
    "list",
    "describe",
    "plan",
    "run",
    "submit",
    "replay",
    "status",
    "drain",
    "cancel",
    "savepoint",
    "update",
    "top",
    "template",
    "lab",
    "completion",
)
COMPLETION = {
    "bash": '_tiebeam() { COMPREPLY=($(compgen -W "$(tiebeam words "${COMP_WORDS[@]:1}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}")); }\n'
    "complete -o default -F _tiebeam tiebeam",
    "zsh": '#compdef tiebeam\n_tiebeam() { compadd -- ${(f)"$(tiebeam words ${words[2,-1]} 2>/dev/null)"} || _files; }\n'
    "compdef _tiebeam tiebeam",
    "fish": "complete -c tiebeam -a '(tiebeam words (commandline -opc)[2..-1] 2>/dev/null)'",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    verbs: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "describe": _describe,
        "plan": _plan,
        "run": _run,
        "replay": _replay,
        "top": _top,
        "lab": _lab,
        "template": _template,
        "submit": _submit,
        **{verb: partial(_of_job, verb) for verb in ("status", "drain", "cancel", "savepoint", "update")},
        "completion": _completion,
        "words": _words,
    }
    try:
        if verb in ("--help", "-h", "help"):
            print(USAGE, end="")
            return 0
        if verb in ("--version", "-V"):
            print(f"tiebeam {__version__}")
            return 0
        if verb not in verbs:
            raise ConfigError(Problem(f"there is no command {verb!r}", fix=f"one of {', '.join(sorted(verbs.keys() - {'words'}))}"))
        return verbs[verb](rest)
    except ConfigError as e:
        print(f"tiebeam {verb}: nothing was moved, the configuration is wrong:\n{e}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _json_wanted(argv: list[str]) -> tuple[bool, list[str]]:
    return "--json" in argv, [a for a in argv if a != "--json"]


def _list(argv: list[str]) -> int:
    as_json, rest = _json_wanted(argv)
    if rest:
        raise ConfigError(Problem("takes no arguments but --json", rest[0]))
    pipelines, connectors = registry.entries("pipelines"), registry.entries("connectors")
    if as_json:
        print(json.dumps({"pipelines": [vars(e) for e in pipelines], "connectors": [vars(e) for e in connectors]}, indent=2))
        return 0
    print(table(["pipeline", "what it does"], [(e.name, e.summary) for e in pipelines]))
    print()
    print(
        table(
            ["connector", "reads", "writes", "what it is"],
            [(e.name, "source" in e.roles, "sink" in e.roles, e.summary) for e in connectors],
        )
    )
    return 0


def _describe(argv: list[str]) -> int:
    as_json, rest = _json_wanted(argv)
    if len(rest) != 1:
        raise ConfigError(Problem("takes one name, that of a pipeline or a connector", fix="tiebeam list shows them"))
    name = rest[0]
    if name in registry.modules("pipelines"):
        about = _about_pipeline(name)
    elif name in registry.modules("connectors"):
        about = _about_connector(name)
    else:
        known = [*registry.modules("pipelines"), *registry.modules("connectors")]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "see tiebeam list"
        raise ConfigError(Problem(f"there is no pipeline or connector called {name!r}", fix=hint))
    print(json.dumps(about, indent=2) if as_json else _page(about))
    return 0


def _about_pipeline(name: str) -> dict[str, Any]:
    module = registry.pipeline(name)
    parts = {"options": [_about_option(o) for o in options.declared(module.Options)]}
    return {"name": name, "kind": "pipeline", "about": (module.__doc__ or "").strip(), **parts}


def _about_connector(name: str) -> dict[str, Any]:
    entry = next(e for e in registry.entries("connectors") if e.name == name)
    about: dict[str, Any] = {"name": name, "kind": "connector", "about": entry.summary}
    for role in entry.roles:
        cls: Any = registry.connector(role, name)
        can = (
            {"bounded": cls.bounded, "emits changes": cls.emits_changes}
            if role == "source"
            else {
                "modes": ", ".join(cls.modes),
                "takes changes": cls.takes_changes,
                "takes unbounded": cls.takes_unbounded,
                "delivery": cls.delivery,
            }
        )
        about[role] = {"class": cls.__name__, "capabilities": can, "options": [_about_option(o) for o in options.declared(cls)]}
    return about


def _about_option(o: options.Option) -> dict[str, Any]:
    kind = o.role or ("text" if o.kind is str else {"tuple": "list", "bool": "true/false"}.get(o.kind.__name__, o.kind.__name__.lower()))
    return {
        "name": o.name,
        "type": kind,
        "unit": o.unit,
        "required": o.required,
        "default": None if o.default is MISSING else o.default,
        "choices": list(o.choices),
        "help": o.help,
        "example": o.example,
    }


def _page(about: dict[str, Any]) -> str:
    parts = [paragraphs(about["about"])]
    if "options" in about:
        parts.append(_option_table(about["options"], "--"))
    for role in ("source", "sink"):
        if role in about:
            can = about[role]["capabilities"]
            said = "; ".join(f"{k}: {({True: 'yes', False: 'no'}).get(v, v)}" for k, v in can.items())
            parts.append(paragraphs(f"as a {role} ({about[role]['class']}): {said}"))
            parts.append(_option_table(about[role]["options"], f"--{role}_"))
    return "\n\n".join(parts)


def _option_table(described: list[dict[str, Any]], prefix: str) -> str:
    rows = []
    for o in described:
        default = "required" if o["required"] else "" if o["default"] is None else str(o["default"]) if o["default"] != () else ""
        kind = "|".join(o["choices"]) if o["choices"] and len("|".join(o["choices"])) < 24 else o["type"]
        text = (
            o["help"]
            + (f" [{o['unit']}]" if o["unit"] else "")
            + (f" ({', '.join(o['choices'])})" if o["choices"] and kind == o["type"] else "")
        )
        rows.append((prefix + o["name"], kind, default, text + (f"\ne.g. {prefix}{o['name']}={o['example']}" if o["example"] else "")))
    return table(["option", "type", "default", "meaning"], rows)


def _named(argv: list[str], verb: str) -> tuple[str, list[str]]:
    if not argv or argv[0].startswith("-"):
        raise ConfigError(Problem(f"tiebeam {verb} takes the name of a pipeline first", fix="tiebeam list shows them"))
    return argv[0], argv[1:]


def _top(argv: list[str]) -> int:
    from tiebeam.pipelines import _top

    return _top.top(argv)


def _lab(argv: list[str]) -> int:
    from tiebeam.lab import _keeper

    folders = [a.partition("=")[2] for a in argv if a.startswith("--folder=")]
    words = [a for a in argv if not a.startswith("--folder=") and a != "--json"]
    verb, *services = words or [""]
    if verb not in ("up", "status", "down") or (services and verb != "up") or set(services) - set(_keeper.SERVICES):
        raise ConfigError(
            Problem(f"cannot be understood: {' '.join(words)!r}", "lab", f"tiebeam lab up [{' | '.join(_keeper.SERVICES)}], status or down")
        )
    folder = Path(folders[-1] if folders else "work/lab")
    if verb == "down":
        ended = _keeper.down(folder)
        print(f"ended: {', '.join(ended)}" if ended else "nothing was running")
        return 0
    if verb == "up":
        for service in services or _keeper.FIRST:
            _keeper.up(service, folder)
    running = _keeper.status(folder)
    if "--json" in argv:
        print(json.dumps(running, indent=2))
    elif running:
        print(table(["service", "address", "process"], [(name, told["address"], str(told["pid"])) for name, told in running.items()]))
        print("\n".join(f"export {name}={shlex.quote(value)}" for told in running.values() for name, value in told["environment"].items()))
    else:
        print("nothing is running")
    return 0


def _template(argv: list[str]) -> int:
    from tiebeam.templates import _build

    if argv[:1] != ["build"]:
        raise ConfigError(Problem(f"there is no command {' '.join(argv[:1])!r}", "template", "tiebeam template build PIPELINE --target=…"))
    asked, files = _build.build(argv[1:])
    print("\n".join(str(path) for path in files))
    if drive := getattr(registry.target(asked.target), "drive", None):
        drive(asked)
    return 0


def _plan(argv: list[str]) -> int:
    from tiebeam.pipelines import _plan

    return _help(argv) or _plan.plan(*_named(argv, "plan"))


def _run(argv: list[str]) -> int:
    from tiebeam.pipelines import _job

    return _help(argv) or _job.run(*_named(argv, "run"))


def _submit(argv: list[str]) -> int:
    from tiebeam.pipelines import _submit

    return _help(argv) or _submit.submit(*_named(argv, "submit"))


def _of_job(verb: str, argv: list[str]) -> int:
    from tiebeam.pipelines import _jobs

    return _jobs.do(verb, argv)


def _replay(argv: list[str]) -> int:
    return _run(["replay", *argv])


def _help(argv: list[str]) -> int:
    if not {"--help", "-h"} & set(argv):
        return 0
    name, _ = _named([a for a in argv if a not in ("--help", "-h")], "run")
    print(_page(_about_pipeline(name)))
    print(f"\nOptions of a connector: tiebeam describe CONNECTOR{'.':1} All of Beam's own options pass through."[: width()])
    raise SystemExit(0)


def _completion(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0] not in COMPLETION:
        raise ConfigError(Problem("takes a shell", fix=f"one of {', '.join(COMPLETION)}; e.g. source <(tiebeam completion bash)"))
    print(COMPLETION[argv[0]])
    return 0


def _words(argv: list[str]) -> int:
    """What can stand next on the command line; called by the completion scripts."""
    done = argv[:-1] if len(argv) > 1 else []
    if not done:
        print("\n".join(_VERBS))
    elif done[0] == "template":
        print("\n".join([["build"], list(registry.modules("pipelines"))][len(done) - 1] if len(done) < 3 else _template_flags()))
    elif done[0] == "lab":
        print("\n".join(["up", "status", "down"] if len(done) == 1 else ["kafka", "--folder="]))
    elif len(done) == 1 and done[0] in ("plan", "run", "submit", "describe"):
        print("\n".join([*registry.modules("pipelines"), *(registry.modules("connectors") if done[0] == "describe" else [])]))
    else:
        name = "replay" if done[0] == "replay" else done[1]
        print("\n".join(_flags(name, argv)))
    return 0


def _template_flags() -> list[str]:
    return [*(f"--target={name}" for name in registry.modules("targets")), "--output=", "--image="]


def _flags(name: str, argv: list[str]) -> list[str]:
    given = dict(a[2:].split("=", 1) for a in argv if a.startswith("--") and "=" in a)
    flags = []
    for o in options.declared(registry.pipeline(name).Options):
        if not o.role:
            flags.append(f"--{o.name}=")
            continue
        flags += [f"--{o.name}={e.name}" for e in registry.entries("connectors") if o.role in e.roles]
        if o.name in given:
            flags += [f"--{o.name}_{c.name}=" for c in options.declared(registry.connector(o.role, given[o.name]))]
    return flags


if __name__ == "__main__":
    sys.exit(main())
