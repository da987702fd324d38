"""Errors: what a problem looks like to people, and that it survives the way from a worker."""

import pickle

from tiebeam.errors import ConfigError, Problem


def test_a_problem_says_where_what_and_how_to_mend_it():
    assert str(Problem("is required", "--path", "name a file")) == "--path: is required\n    to fix: name a file"
    assert str(Problem("is required")) == "is required"


def test_a_config_error_tells_every_problem():
    error = ConfigError(Problem("is required", "--path"), "the moon is down")
    assert [p.what for p in error.problems] == ["is required", "the moon is down"]
    assert str(error) == "  - --path: is required\n  - the moon is down"


def test_a_config_error_can_be_pickled():
    error = ConfigError(Problem("is required", "--path", "name a file"), Problem("other"))
    back = pickle.loads(pickle.dumps(error))
    assert back.problems == error.problems
    assert str(back) == str(error)
