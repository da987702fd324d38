"""The options of a pipeline as one flat list, those of every connector among them: what consoles, manifests and schedulers ask for.

A pipeline that takes any connector has an option that names it (`source`), and under the same prefix the options of all connectors that
can play the role (`source_path`). Options that several connectors share are one parameter, shown when any of them is chosen.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, replace
from typing import Any

from tiebeam import options, registry
from tiebeam.errors import ConfigError, Problem
from tiebeam.options import Option, declared

OF_EVERY_JOB = "Run"


@dataclass(frozen=True)
class Parameter:
    """One option as the command line has it; `parents` are the connectors that have it, `parent` the role that names one of them."""

    name: str
    option: Option
    group: str
    help: str
    required: bool
    default: str | None
    choices: tuple[str, ...] = ()
    parent: str | None = None
    parents: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.name.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Pipeline:
    """What a template is made of: a pipeline, its parameters, and whether any of its sources can go on without end."""

    name: str
    about: str
    parameters: tuple[Parameter, ...]
    streams: bool

    @property
    def summary(self) -> str:
        """Its first line."""
        return self.about.partition("\n")[0]

    @property
    def roles(self) -> dict[str, Parameter]:
        """The parameters that name a connector."""
        return {p.name: p for p in self.parameters if p.option.role}


def pipeline(name: str, *, one_machine: bool = True) -> Pipeline:
    """Describes a pipeline. Without `one_machine`, by the connectors that need no disk; ConfigError when it needs one itself."""
    one_graph(name)
    module = registry.pipeline(name)
    own, streams = [], False
    for o in declared(module.Options):
        if o.role:
            able = _able(o.role, one_machine)
            own += _of_role(o, able)
            streams = streams or (o.role == "source" and any(not cls.bounded for cls in able.values()))
        else:
            if o.place == "local" and not one_machine:
                told = f"{name} keeps something on the disk of one machine (--{o.name}), and the workers there share none"
                raise ConfigError(Problem(told, "--target", f"tiebeam template build {name} --target=airflow"))
            own.append(_of_option(o, o.name, _group(o)))
    own.sort(key=lambda one: one.group == OF_EVERY_JOB)
    return Pipeline(name, (module.__doc__ or name).strip(), tuple(own), streams)


def one_graph(name: str) -> None:
    """Refuses a pipeline that is a command of this machine and no graph that a platform could run."""
    if hasattr(registry.pipeline(name), "main"):
        what = f"{name} is a command that starts jobs of its own, no graph that a platform could run"
        raise ConfigError(Problem(what, "PIPELINE", f"tiebeam run {name}; a template of Airflow brings a replay with it"))


def _able(role: str, one_machine: bool) -> dict[str, Any]:
    """The connectors that can play a role, by name."""
    found = {e.name: registry.connector(role, e.name) for e in registry.entries("connectors") if role in e.roles}
    return {n: cls for n, cls in found.items() if one_machine or not any(o.place == "local" for o in declared(cls))}


def _of_role(role: Option, able: dict[str, Any]) -> list[Parameter]:
    group = role.name.replace("_", " ").capitalize()
    default = None if role.default in (MISSING, None) else str(role.default)
    named = Parameter(role.name, role, group, _sentence(role), role.required, default, tuple(able))
    owned: dict[str, dict[str, Option]] = {}
    for name, cls in able.items():
        for o in declared(cls):
            owned.setdefault(o.name, {})[name] = o
    return [named, *(_shared(role, group, name, owners, len(able)) for name, owners in owned.items())]


def _shared(role: Option, group: str, name: str, owners: dict[str, Option], able: int) -> Parameter:
    """One parameter of all the connectors that have it: what they agree on, and what they do not said in its help."""
    first = next(iter(owners.values()))
    required = role.required and len(owners) == able and all(o.required for o in owners.values())

    def agreed(part: str, otherwise: Any) -> Any:
        values = {getattr(o, part) for o in owners.values()}
        return values.pop() if len(values) == 1 else otherwise

    first = replace(first, kind=agreed("kind", str), place=agreed("place", None))
    made = _of_option(first, f"{role.name}_{name}", group)
    made = replace(made, parent=role.name, parents=tuple(owners), required=required)
    helps = _told_apart({n: _sentence(o) for n, o in owners.items()})
    defaults = {n: _text(o.default) for n, o in owners.items()}
    choices = [o.choices for o in owners.values()]
    if len(set(defaults.values())) > 1:
        made = replace(made, default=None)
        helps += f" Default: {_told_apart({n: d or 'none' for n, d in defaults.items()})}."
    return replace(made, help=helps, choices=tuple(dict.fromkeys(c for some in choices for c in some)) if all(choices) else ())


def _of_option(o: Option, name: str, group: str) -> Parameter:
    return Parameter(name, o, group, _sentence(o), o.required, _text(o.default), o.choices)


def _group(o: Option) -> str:
    return OF_EVERY_JOB if o.name in {own.name for own in declared(options.JobOptions)} else "Pipeline"


def _sentence(o: Option) -> str:
    unit = f", in {o.unit}" if o.unit else ""
    bounds = "" if o.low is None else f" (at least {o.low:g})" if o.high is None else f" ({o.low:g} to {o.high:,g})"
    return f"{o.help.rstrip('.')}{unit}{bounds}."


def _told_apart(told: dict[str, str]) -> str:
    """What connectors say, once when they all say the same, else under the names of those that do."""
    by_text: dict[str, list[str]] = {}
    for name, text in told.items():
        by_text.setdefault(text, []).append(name)
    return next(iter(by_text)) if len(by_text) == 1 else " ".join(f"{', '.join(names)}: {text}" for text, names in by_text.items())


def _text(value: Any) -> str | None:
    """A default as it would be written on the command line; None where there is none."""
    if value in (MISSING, None, ()):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)
