"""The three kinds of trouble a pipeline tells apart.

A `ConfigError` is found before anything moves, a `TransientError` is retried by the runner, and a bad row is
no exception at all: it becomes a dead letter (`tiebeam.dead_letters`) and its neighbours go on.

Nothing is imported here, so that the command line can speak of trouble before it has loaded Beam.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: what it is, where it stands, how to mend it."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        fix = f"\n    to fix: {self.fix}" if self.fix else ""
        return f"{where}{self.what}{fix}"


class ConfigError(Exception):
    """Says that a job cannot start as it is configured; holds every problem found, not only the first.

    Nothing has been moved when this is raised. The command line exits with 2.
    """

    def __init__(self, *problems: Problem | str):
        self.problems = [Problem(p) if isinstance(p, str) else p for p in problems]
        super().__init__("\n".join(f"  - {p}" for p in self.problems))

    def __reduce__(self):
        return type(self), tuple(self.problems)


class TransientError(Exception):
    """Says that an outside system failed for now: the runner retries the bundle."""


class BadFileError(Exception):
    """Says that a file as a whole cannot be read, and names it (`on_bad_file=fail`)."""


class TooManyRejectedError(Exception):
    """Says that more rows were rejected than `max_rejected_ratio` allows. The command line exits with 3."""


class NowhereToGoError(Exception):
    """Says that a row was rejected in a pipeline that collects no dead letters."""


class ContractError(Exception):
    """Says that rows have a shape which their contract freezes (`new_columns` or `changed_types: freeze`): the job stops."""
