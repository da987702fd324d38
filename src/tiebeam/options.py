"""Options: declared once, typed, on a dataclass; read by the command line, its help, templates and docs.

    class Options(JobOptions):
        top: int = option(10, help="Products listed per department", low=1)
        source: Source = role("source", help="Where rows come from")

A role is an option whose value is a connector: `--source=jsonl` picks it, and its own options follow under the
role's name, `--source_path=in/*.jsonl`. `parse` turns flags into an instance, and reports everything that is wrong
with them in one `ConfigError`. Flags it does not know are compared with Beam's own and passed on.

Secrets are given as references, `env:NAME` or `file:PATH`, and resolved where they are used, on the worker.
This is the only module that reads the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import keyword
import os
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from tiebeam.errors import ConfigError, Problem

# What the text of an option may name: files and folders of any file system, what lies on the disk of one machine, things of Google's.
PLACES = ("files", "folder", "local", "pubsub_topic", "pubsub_subscription", "bigquery_table")
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
standard = os.environ.get
"""Reads a variable that other tools read too, such as PUBSUB_EMULATOR_HOST."""


@dataclass(frozen=True)
class Secret:
    """A reference to a secret: `env:NAME` or `file:PATH`. The value itself is never held, shown or staged."""

    reference: str

    def resolve(self) -> str:
        scheme, _, rest = self.reference.partition(":")
        try:
            return os.environ[rest] if scheme == "env" else Path(rest).read_text(encoding="utf-8").strip()
        except (KeyError, OSError) as e:
            what = f"the secret {self.reference} cannot be read here ({type(e).__name__})"
            raise ConfigError(Problem(what, fix="provide it on every worker")) from None


@dataclass(frozen=True)
class Option:
    """What is declared of one option; `kind` is its Python type, `role` is `source` or `sink` when it names a connector."""

    name: str
    kind: Any
    default: Any
    help: str
    example: str | None = None
    unit: str | None = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    role: str | None = None
    place: str | None = None
    optional: bool = False

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def secret(self) -> bool:
        return self.kind is Secret

    @property
    def attribute(self) -> str:
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name  # `from` is a word of Python

    def check(self, value: Any) -> str | None:
        """Says what is wrong with a value of the right type; None when nothing is."""
        if value is None:
            return None
        for v in value if isinstance(value, tuple) else (value,):
            if self.choices and v not in self.choices:
                return f"{v!r} is not one of {', '.join(self.choices)}"
            if v != v:
                return "not a number"
            if self.low is not None and v < self.low:
                return f"{v} is below the smallest allowed, {self.low}"
            if self.high is not None and v > self.high:
                return f"{v} is above the largest allowed, {self.high}"
        return None

    def judge(self, value: Any) -> str | None:
        """Says what is wrong with the type of a value given in Python; None when nothing is."""
        if value is None:
            return None if self.optional else "needs a value"
        if self.kind not in (str, int, float, bool, tuple, Secret):
            return None
        if isinstance(value, self.kind) and not (isinstance(value, bool) and self.kind is not bool):
            strangers = [v for v in value if not isinstance(v, str)] if self.kind is tuple else []
            return f"expected text, not {strangers[0]!r}" if strangers else None
        shown = type(value).__name__ if self.secret else repr(value)  # whoever gives the secret itself must not see it logged
        return f"expected {self.kind.__name__}, not {shown}"

    def read(self, text: str) -> Any:
        """Reads a value from its text; raises ValueError saying what was expected."""
        if self.kind is bool:
            if text.lower() not in _TRUE | _FALSE:
                raise ValueError("expected true or false")
            return text.lower() in _TRUE
        if self.kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if self.kind is Secret:
            if text.partition(":")[0] not in ("env", "file"):
                raise ValueError("expected a reference, env:NAME or file:PATH, never the secret itself")
            return Secret(text)
        if self.kind in (int, float):
            try:
                return self.kind(text.replace("_", ""))
            except ValueError:
                raise ValueError(f"expected {'a whole' if self.kind is int else 'a'} number, not {text!r}") from None
        return text


def option(
    default: Any = MISSING,
    *,
    help: str,
    example: str | None = None,
    unit: str | None = None,
    choices: Iterable[str] = (),
    low: float | None = None,
    high: float | None = None,
    by_name: bool = False,
    place: str | None = None,
) -> Any:
    """Declares a field as an option; without a default it is required. `by_name`: in Python it is given by name only.

    Types: str, int, float, bool, tuple[str, ...], Secret, each `| None`. `place` says what its text names (`PLACES`).
    """
    spec = dict(help=help, example=example, unit=unit, choices=tuple(choices), low=low, high=high, place=place)
    return field(default=default, metadata={"option": spec}, kw_only=by_name or MISSING)


def role(kind: str, default: Any = MISSING, *, help: str, example: str | None = None) -> Any:
    """Declares a field whose value is a connector of the registry, `kind` source or sink; a default is a connector's name."""
    return field(default=default, metadata={"option": dict(help=help, example=example, role=kind)})


def declared(cls: type) -> list[Option]:
    """The options of a class, in the order of declaration, those of its bases first."""
    hints = typing.get_type_hints(cls)
    found = []
    for f in fields(cls):
        if "option" in f.metadata:
            kind, optional = _kind(hints[f.name])
            found.append(Option(name=f.name.rstrip("_"), kind=kind, optional=optional, default=f.default, **f.metadata["option"]))
    return found


def _kind(hint: Any) -> tuple[Any, bool]:
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return typing.get_origin(hint) or hint, optional


class Declared:
    """Base of every class whose fields are options: a subclass is a dataclass, and its values are checked when it is made."""

    keyword_only: typing.ClassVar[bool] = False
    __init__: typing.ClassVar[Callable[..., None]]  # dataclass_transform takes an option whose default is positional for required

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(cls, eq=False, repr=False, kw_only=cls.keyword_only)

    def __post_init__(self):
        problems = []
        for o in declared(type(self)):
            value = getattr(self, o.attribute)
            if isinstance(value, list):
                value = tuple(value)
            elif o.kind is tuple and isinstance(value, str):
                value = o.read(value)
            if o.kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            setattr(self, o.attribute, value)
            if trouble := o.judge(value) or o.check(value):
                problems.append(Problem(trouble, o.name, o.help))
        problems += [Problem(*p) if isinstance(p, tuple) else p for p in self.check()]
        if problems:
            raise ConfigError(*problems)

    def check(self) -> Iterable[Problem | tuple[str, ...]]:
        """Override to report what is wrong between options; nothing outside is reached here."""
        return ()

    def __repr__(self) -> str:
        values = {o.attribute: (getattr(self, o.attribute), o.default) for o in declared(type(self))}
        shown = ", ".join(f"{name}={value!r}" for name, (value, default) in values.items() if value != default)
        return f"{type(self).__name__}({shown})"


class JobOptions(Declared):
    """The options every pipeline has."""

    keyword_only: typing.ClassVar[bool] = True

    dead_letters: str | None = option(
        None,
        help="Where rejected rows are kept; by default beside the output, in a folder of its name with .rejected behind it",
        example="rejected/",
        place="folder",
    )
    max_rejected_ratio: float = option(
        1.0, help="Publish nothing when more than this share of the rows read was rejected", low=0, high=1, example="0.01"
    )
    run_id: str | None = option(
        None,
        help="Name of the run; a run whose name was already published changes nothing. "
        "By default derived from options and input, so the same job on the same input publishes once",
        example="2026-11-24",
    )
    max_attempts: int = option(3, help="How often a dead letter is replayed before it is parked", unit="attempts", low=1)

    def sources(self) -> Iterable[Any]:
        """Override to name sources that are read beside those of roles: they are reached before the run, and name it."""
        return ()

    def files(self) -> Iterable[str]:
        """Override to name local files whose content changes what a run does, a contract for one."""
        return ()


def parse(cls: type, argv: list[str], find: Callable[[str, str], type], known_elsewhere: Callable[[], set[str]]) -> tuple[Any, list[str]]:
    """Turns flags into an instance of `cls` and what is left for Beam.

    `find(role, name)` gives the class of a connector; `known_elsewhere()` the flags Beam itself knows, asked for only
    when there is a flag we do not know. Raises ConfigError with every problem found.
    """
    given, problems = _split(argv, _booleans(cls, argv, find))
    values: dict[str, Any] = {}
    specs: dict[str, Option] = {}
    for o in declared(cls):
        specs[o.name] = o
        if o.role:
            values[o.name] = _read_role(o, given, specs, find, problems)
        else:
            _read_value(o, o.name, given, values, problems)
    rest: list[str] = []
    unknown = [name for name in given if name not in specs]
    foreign = known_elsewhere() if unknown else set()
    for name in unknown:
        if name in foreign:
            rest += [f"--{name}" if value is None else f"--{name}={value}" for value in given[name]]
        else:
            near = difflib.get_close_matches(name, [*specs, *foreign], n=1, cutoff=0.5)
            problems.append(Problem("there is no such option", f"--{name}", f"did you mean --{near[0]}?" if near else "see --help"))
    if not problems:
        try:
            return cls(**{specs[name].attribute: value for name, value in values.items()}), rest
        except ConfigError as e:
            problems += [dataclasses.replace(p, where=f"--{p.where}" if p.where in specs else p.where) for p in e.problems]
    raise ConfigError(*problems)


def _booleans(cls: type, argv: list[str], find: Callable[[str, str], type]) -> set[str]:
    names = {o.name for o in declared(cls) if o.kind is bool}
    given, _ = _split(argv, set())
    for o in declared(cls):
        name = (given.get(o.name) or [o.default])[-1]
        if o.role and isinstance(name, str):
            try:
                names |= {f"{o.name}_{c.name}" for c in declared(find(o.role, name)) if c.kind is bool}
            except ConfigError:
                continue
    return names


def _split(argv: list[str], booleans: set[str]) -> tuple[dict[str, list[str | None]], list[Problem]]:
    given: dict[str, list[str | None]] = {}
    problems = []
    words = iter([*argv, None])
    word = next(words)
    while word is not None:
        following = next(words)
        if not word.startswith("--"):
            problems.append(Problem("stands alone; options are written --name=value", word))
        else:
            name, eq, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if eq:
                given.setdefault(name, []).append(value)
            elif name not in booleans and following is not None and not following.startswith("--"):
                given.setdefault(name, []).append(following)
                following = next(words)
            else:
                given.setdefault(name, []).append(None)
        word = following
    return given, problems


def _missing(o: Option, flag: str) -> Problem:
    return Problem("is required", f"--{flag}", f"{o.help}, such as --{flag}={o.example}" if o.example else o.help)


def _read_value(o: Option, flag: str, given: dict[str, list[str | None]], values: dict[str, Any], problems: list[Problem]) -> None:
    if flag not in given:
        if o.required:
            problems.append(_missing(o, flag))
        else:
            values[o.name] = o.default
        return
    text = given[flag][-1]
    try:
        if text is None and o.kind is not bool:
            raise ValueError("needs a value")
        value = True if text is None else o.read(text)
    except ValueError as e:
        problems.append(Problem(str(e), f"--{flag}", o.help))
        return
    if trouble := o.check(value):
        problems.append(Problem(trouble, f"--{flag}", o.help))
    values[o.name] = value


def _read_role(
    o: Option, given: dict[str, list[str | None]], specs: dict[str, Option], find: Callable[[str, str], type], problems: list[Problem]
) -> Any:
    name = (given.get(o.name) or [None if o.required else o.default])[-1]
    if name is None and o.required:
        problems.append(_missing(o, o.name))
    orphans = [flag for flag in given if flag.startswith(f"{o.name}_")] if name is None and not o.required else []
    problems += [Problem(f"belongs to a {o.role}, and none is chosen", f"--{flag}", f"add --{o.name}=NAME") for flag in orphans]
    try:
        connector = find(o.role or "", name) if name else None
    except ConfigError as e:
        problems += [dataclasses.replace(p, where=f"--{o.name}") for p in e.problems]
        connector = None
    if connector is None:
        specs |= {flag: o for flag in given if flag.startswith(f"{o.name}_")}  # whose connector is unknown cannot be judged
        return None
    values: dict[str, Any] = {}
    before = len(problems)
    for c in declared(connector):
        flag = f"{o.name}_{c.name}"
        specs[flag] = c
        _read_value(c, flag, given, values, problems)
    if len(problems) > before:
        return None
    try:
        return connector(**values)
    except ConfigError as e:
        problems += [dataclasses.replace(p, where=f"--{o.name}_{p.where}" if p.where else f"--{o.name}") for p in e.problems]
        return None
