"""What every pipeline's `run` does: parse, check, reach, build, run, account.

A pipeline module offers `Options(JobOptions)` and `build(p, options)`. It may offer `finish(options, outcome)`, called
after a successful run; `ACCEPTS`, the label of the step whose rows count as accepted, less those that later steps reject
(without it, those that the sinks staged do); `READS`, the labels of the steps whose rows count as read (without it, all
sources); and `main(argv, as_json)`, to run as something else than one graph.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import apache_beam as beam
import yaml
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from tiebeam import __version__, registry, steps, terminal
from tiebeam.connectors import Source
from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.options import declared, parse
from tiebeam.pipelines import _cursor, _places, _runner, _view
from tiebeam.pipelines._account import Outcome, account, all_published, labels_by_id, progress_lines, summary, top_labels
from tiebeam.pipelines._interrupt import interruptible

SAMPLE_ROWS = 10_000


class JobFailedError(Exception):
    """Says why a run ended without publishing, in one line, with the exit code to report."""

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Job:
    """A pipeline whose options are checked and whose systems were reached; nothing has been moved yet."""

    name: str
    module: ModuleType
    options: Any
    argv: list[str]
    beam_argv: list[str]
    runner: str
    run_id: str
    endless: bool = False
    progress: _cursor.Progress | None = None


def prepare(name: str, argv: list[str], *, on: bool = True) -> Job:
    """Parses and checks everything, and reaches every system; `on`: has a cursor go on from the last run.

    Raises ConfigError with all that is wrong, and NothingNewError when there is nothing to read.
    """
    module = registry.pipeline(name)
    argv = with_options_file(argv)
    options, beam_argv = parse(module.Options, argv, registry.connector, _runner.known_flags)
    endless = any(not source.bounded for source in [*connectors(options).values(), *options.sources()] if isinstance(source, Source))
    beam_argv = _runner.with_safe_flags(_runner.for_streams(beam_argv) if endless else beam_argv)
    if problems := _runner.check(beam_argv):
        raise ConfigError(*problems)
    FileSystems.set_options(PipelineOptions(beam_argv))  # what is reached below is reached with the credentials of the job
    if beyond := list(_places.beyond_reach(options, connectors(options))) if _runner.runner_of(beam_argv) == "DataflowRunner" else []:
        raise ConfigError(*beyond)
    reach(options)
    progress = _cursor.go_on(module, options, connectors(options)) if on else None
    run_id = progress.run_id if progress else options.run_id or derived_run_id(name, options)
    return Job(name, module, options, argv, beam_argv, _runner.runner_of(beam_argv), run_id, endless, progress)


def with_options_file(argv: list[str]) -> list[str]:
    """Puts the flags of `--options_file=FILE.yaml` in front of those given, which win."""
    given = [a for a in argv if not a.startswith("--options_file=")]
    flags = []
    for path in [a.partition("=")[2] for a in argv if a.startswith("--options_file=")]:
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as e:
            raise ConfigError(Problem(f"cannot be read: {e}", f"--options_file={path}", "a YAML file of option: value")) from None
        if not isinstance(values, dict):
            raise ConfigError(Problem("holds no options", f"--options_file={path}", "a YAML file of option: value"))
        for key, value in values.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else value
            if not any(a.partition("=")[0] == f"--{key}" for a in given):
                flags.append(f"--{key}={text}")
    return flags + given


def connectors(options: Any) -> dict[str, Any]:
    """The connectors chosen for an options' roles, by role name."""
    return {o.name: getattr(options, o.name) for o in declared(type(options)) if o.role and getattr(options, o.name) is not None}


def reach(options: Any) -> None:
    """Pings every connector; raises ConfigError with the problems of all of them."""
    problems: list[Problem] = []
    for role, connector in [*connectors(options).items(), *(("input", s) for s in options.sources())]:
        try:
            connector.ping()
        except ConfigError as e:
            problems += [Problem(p.what, f"--{role} {p.where}".strip(), p.fix) for p in e.problems]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def check_rows(source: Any, *checks: Callable[[Any], Any]) -> None:
    """Holds the first rows of a source, as far as it can show some, to what steps need: ConfigError before anything moves."""
    sample = source.sample(SAMPLE_ROWS)
    for check in checks if sample is not None else ():
        check(sample.schema)


def derived_run_id(name: str, options: Any) -> str:
    """Names a run after what it does and what it reads: the same job on the same input has the same name."""
    sources = [c for c in connectors(options).values() if hasattr(c, "fingerprint")] + list(options.sources())
    prints = [s.fingerprint() for s in sources]
    said = {o.name: repr(getattr(options, o.attribute)) for o in declared(type(options)) if not o.role}
    roles = {role: [repr(getattr(c, o.name)) for o in declared(type(c))] for role, c in connectors(options).items()}
    contents = [_content(f) for f in options.files()]
    if None in prints or not prints:
        prints.append(os.urandom(16).hex())
    text = json.dumps([name, __version__, said, roles, prints, contents], sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _content(path: str) -> str:
    with FileSystems.open(path.partition("#")[0]) as file:
        return hashlib.sha256(file.read()).hexdigest()


def assemble(job: Job, *, prior_attempts: dict[str, int] | None = None) -> tuple[beam.Pipeline, Delivery]:
    """Builds the graph of a job, delivery included."""
    named = (
        [] if any(flag.startswith("--job_name=") for flag in job.beam_argv) else [f"--job_name={_runner.job_name(job.runner, job.run_id)}"]
    )
    try:
        p = beam.Pipeline(options=PipelineOptions([f"--runner={job.runner}", *named, *_runner.without_runner(job.beam_argv)]))
    except ValueError as e:  # flags that Beam finds wrong together
        raise ConfigError(*(Problem(line, "flags of Beam") for line in str(e).splitlines()[1:] or [str(e)])) from None
    delivery = Delivery(
        p,
        job.options.dead_letters,
        run_id=job.run_id,
        max_rejected_ratio=job.options.max_rejected_ratio,
        max_attempts=job.options.max_attempts,
        name=job.name,
        prior_attempts=prior_attempts,
    )
    with delivery:
        job.module.build(p, job.options)
    delivery.store.ping()
    return p, delivery


def run(name: str, argv: list[str] | None = None) -> int:
    """Runs a pipeline from its flags and returns the exit code; what `python -m tiebeam.pipelines.NAME` calls."""
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv
    argv = [a for a in argv if a != "--json"]
    try:
        module = registry.pipeline(name)
        if hasattr(module, "main"):
            return module.main(argv, as_json)
        outcome = execute(prepare(name, argv))
    except _cursor.NothingNewError as e:
        e.finish()
        print(json.dumps({"pipeline": name, "run_id": e.last, "read": 0}, indent=2) if as_json else f"{name}: {e}")
        return 0
    except ConfigError as e:
        print(f"{name}: nothing was moved, the configuration is wrong:\n{e}", file=sys.stderr)
        return 2
    except JobFailedError as e:
        print(f"{name}: {e}", file=sys.stderr)
        return e.exit_code
    if outcome.runs_on and not as_json:
        print(
            f"{name}: run {outcome.run_id} was submitted to {outcome.runner} and runs on there; rejected rows go to {outcome.dead_letters}"
        )
        return 0
    print(json.dumps(asdict(outcome), indent=2) if as_json else summary(outcome))
    return 0 if outcome.reconciled else 1


def execute(job: Job, *, prior_attempts: dict[str, int] | None = None, before_drain: Callable[[], Any] = lambda: None) -> Outcome:
    """Builds and runs a prepared job, showing progress. Raises JobFailedError. `before_drain` is called when a stream is to end."""
    p, delivery = assemble(job, prior_attempts=prior_attempts)
    by_id, reads = labels_by_id(p), getattr(job.module, "READS", ())
    labels = top_labels(list(by_id.values()))
    outcome = Outcome(
        job.name, job.run_id, job.runner, dead_letters=delivery.named or delivery.store_location(), outputs=list(delivery.sinks)
    )
    steps.reset_tally()
    started = time.monotonic()
    print(f"{job.name}: run {job.run_id} on {job.runner}", *(job.progress.lines() if job.progress else ()), sep="\n", file=sys.stderr)
    drain = before_drain if job.endless and job.runner == "PrismRunner" else None
    shown = _view.View(labels, reads).lines if job.endless else partial(progress_lines, labels, reads)
    with quiet(), interruptible(delivery, drain) as listen, terminal.Progress(shown):
        try:
            delivery.keep_job({"pipeline": job.name, "argv": job.argv, "version": __version__})
            result = p.run()
            listen()  # Beam has put a handler of its own in place, which ends Prism first
            if job.endless and job.runner != "PrismRunner":
                outcome.runs_on = True
                return outcome
            result.wait_until_finish()
        except KeyboardInterrupt:
            delivery.discard()
            raise JobFailedError("interrupted; nothing was published that is not whole", 130) from None
        except ConfigError:
            raise
        except Exception as e:
            delivery.discard()
            raise JobFailedError(*explain(e)) from (e if logging.getLogger("tiebeam").isEnabledFor(logging.DEBUG) else None)
    outcome.seconds = time.monotonic() - started
    account(outcome, result, by_id, getattr(job.module, "ACCEPTS", None), reads)
    if outcome.reconciled and all_published(result):
        settle(job.options)
    if hasattr(job.module, "finish"):
        job.module.finish(job.options, outcome)
    return outcome


def settle(options: Any) -> None:
    """Tells the sources that all they read is published; what a source then fails to acknowledge will come again."""
    for source in [*connectors(options).values(), *options.sources()]:
        if isinstance(source, Source):
            try:
                source.settle()
            except TransientError as e:
                raise JobFailedError(str(e)) from e


def explain(error: Exception) -> tuple[str, int]:
    """Says in one line why a job failed, and with which exit code to end."""
    text = str(error).strip() or type(error).__name__
    step = re.search(r"\[while running '([^']+)'\]", text)
    line = next((s for s in text.splitlines() if s.strip()), text).strip()
    line = re.sub(r"\s*\[while running '[^']+'\]", "", line)
    cause = error.__cause__ or error
    kind = re.match(r"^(?:tiebeam\.errors\.)?(\w+Error): ", line)
    name = kind.group(1) if kind else type(cause).__name__
    line = line[kind.end() :] if kind and name in _OURS else line
    where = f" (in step {step.group(1).split('/')[0]})" if step and name != "TooManyRejectedError" else ""
    return f"the job failed{where}: {line}", 3 if name == "TooManyRejectedError" or "TooManyRejectedError" in text else 1


_OURS = {"TooManyRejectedError", "BadFileError", "TransientError", "ConfigError"}


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Beam's tracebacks off the terminal: what they say is said by the job's own message."""
    log = logging.getLogger("apache_beam")
    before = log.level
    if not logging.getLogger("tiebeam").isEnabledFor(logging.DEBUG):
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
