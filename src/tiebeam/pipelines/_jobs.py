"""`tiebeam status|drain|cancel|savepoint|update JOB`: jobs on Flink and on Dataflow, by their REST services.

Which of the two is meant is told by its flags: `--flink_master=HOST:PORT`, or `--project=P --region=R`.
"""

from __future__ import annotations

import json
from typing import Any

from tiebeam import dataflow_rest, flink_rest, terminal
from tiebeam.dataflow_rest import DataflowError
from tiebeam.errors import ConfigError, Problem
from tiebeam.flink_rest import FlinkError
from tiebeam.pipelines import _submit, _top

VERBS = ("status", "drain", "cancel", "savepoint", "update")
OWN = {"flink_master", "project", "region", "dataflow_endpoint", "no_auth", "folder", "json"}


def do(verb: str, argv: list[str]) -> int:
    """Does one of the verbs, and says what came of it. Returns 0; raises ConfigError when the job or the service is not there."""
    words = [word for word in argv if not word.startswith("--")]
    given = dict(word[2:].partition("=")[::2] for word in argv if word.startswith("--"))
    if len(words) != (2 if verb == "update" else 1):
        usage = f"tiebeam {verb} JOB{' PIPELINE --flags' if verb == 'update' else ''} --flink_master=HOST:PORT, or --project=P --region=R"
        raise ConfigError(Problem("takes the id of a job", verb, usage))
    if verb != "update" and (unknown := set(given) - OWN):
        raise ConfigError(Problem("there is no such option", f"--{min(unknown)}", ", ".join(f"--{name}" for name in sorted(OWN))))
    platform: Any = _OnDataflow(given) if "project" in given else _OnFlink(given)
    try:
        told = platform.update(words[0], words[1], argv) if verb == "update" else getattr(platform, verb)(words[0])
    except (OSError, FlinkError, DataflowError) as e:
        raise ConfigError(Problem(f"{platform.name} did not do it: {e}", verb, platform.hint)) from None
    if told is None:
        return 0
    print(json.dumps(told, indent=2) if "json" in given else terminal.table(["", platform.name.lower()], list(told.items())))
    return 0


class _OnFlink:
    """Jobs of a cluster of Flink."""

    hint = "--flink_master=HOST:PORT of its REST service"

    def __init__(self, given: dict[str, str]):
        self.rest = flink_rest.Rest(given.get("flink_master") or "localhost:8081")
        self.folder = given.get("folder")
        self.name = f"Flink at {self.rest.address}"

    def status(self, job: str) -> dict[str, Any]:
        job = _top.find(self.rest, [job])
        told = self.rest.ask("GET", f"jobs/{job}")
        counts, last = self.rest.checkpoints(job), self.rest.latest_checkpoint(job)
        causes = self.rest.causes(job)
        return {
            "job": job,
            "name": told["name"],
            "state": told["state"],
            "running for": terminal.seconds(told["duration"] / 1000),
            "checkpoints": f"{counts['completed']} completed, {counts['failed']} failed"
            if told["state"] != "FINISHED" or counts["total"]
            else "none",
            "last checkpoint": last["external_path"] if last else "none",
            "last failure": causes[0].strip().partition("\n")[0] if causes else "none",
            "page": self._page(job),
        }

    def drain(self, job: str) -> dict[str, Any]:
        """Flink's own drain never comes to an end where a source has none; what is read but not published waits in the savepoint."""
        job = _top.find(self.rest, [job])
        place = self.rest.stop(job, self.folder)
        self.rest.await_state(job)
        return {"job": job, "state": self.rest.state(job), "savepoint": place, "goes on with": f"tiebeam submit … --savepoint_path={place}"}

    def cancel(self, job: str) -> dict[str, Any]:
        job = _top.find(self.rest, [job])
        self.rest.cancel(job)
        state = self.rest.await_state(job)
        last = self.rest.latest_checkpoint(job)
        return {"job": job, "state": state, "last checkpoint": last["external_path"] if last else "none"}

    def savepoint(self, job: str) -> dict[str, Any]:
        job = _top.find(self.rest, [job])
        return {"job": job, "savepoint": self.rest.savepoint(job, self.folder)}

    def update(self, job: str, pipeline: str, argv: list[str]) -> None:
        """Stops the job with a savepoint, and starts the pipeline as it is now from there. A flag that is wrong stops nothing."""
        flags = [flag for flag in argv if flag.startswith("--") and not flag.startswith("--folder=")]
        job = _top.find(self.rest, [job])
        flags = _same_run(flags, self.rest.ask("GET", f"jobs/{job}")["name"])
        _submit.check(pipeline, flags)
        place = self.rest.stop(job, self.folder)
        self.rest.await_state(job)
        print(f"{job} was stopped; its savepoint: {place}", flush=True)
        if _submit.submit(pipeline, [*flags, f"--savepoint_path={place}"]):
            again = "the job does not run; what it had is in the savepoint"
            raise ConfigError(Problem(again, "update", f"tiebeam submit {pipeline} … --savepoint_path={place}"))

    def _page(self, job: str) -> str:
        return f"http://{self.rest.address}/#/job/{job}/overview"


class _OnDataflow:
    """Jobs of a project and region on Dataflow."""

    name = "Dataflow"
    hint = "--project=P --region=R, and credentials: gcloud auth application-default login"

    def __init__(self, given: dict[str, str]):
        if not given.get("region"):
            raise ConfigError(Problem("is required with --project", "--region", "--region=europe-west1"))
        endpoint = given.get("dataflow_endpoint") or dataflow_rest.ENDPOINT
        self.rest = dataflow_rest.Rest(given["project"], given["region"], endpoint, "no_auth" not in given)

    def status(self, job: str) -> dict[str, Any]:
        told = self.rest.job(job)
        errors = self.rest.errors(job)
        return {
            "job": told["id"],
            "name": told["name"],
            "state": _state(told),
            "since": told.get("currentStateTime", "unknown"),
            "kind": told.get("type", "").removeprefix("JOB_TYPE_").lower(),
            "created": told.get("createTime", "unknown"),
            "last error": errors[0].partition("\n")[0] if errors else "none",
            "page": self.rest.page(told["id"]),
        }

    def drain(self, job: str) -> dict[str, Any]:
        if self.rest.job(job).get("type") == "JOB_TYPE_BATCH":
            raise ConfigError(Problem("a batch job ends by itself", "drain", f"tiebeam cancel {job} … ends it at once"))
        self.rest.drain(job)
        return {"job": job, "state": _state(self.rest.job(job)), "page": self.rest.page(job)}

    def cancel(self, job: str) -> dict[str, Any]:
        self.rest.cancel(job)
        return {"job": job, "state": _state(self.rest.job(job)), "page": self.rest.page(job)}

    def savepoint(self, job: str) -> dict[str, Any]:
        return {"job": job, "snapshot": self.rest.snapshot(job), "kept for": "7 days"}

    def update(self, job: str, pipeline: str, argv: list[str]) -> None:
        told = self.rest.job(job)
        if told.get("currentState") in dataflow_rest.ENDED:
            raise ConfigError(Problem(f"{job} has ended ({_state(told)})", "update", f"tiebeam submit {pipeline} …"))
        flags = _same_run([flag for flag in argv if flag.startswith("--")], told["name"])
        if _submit.submit(pipeline, [*flags, "--runner=DataflowRunner", "--update", f"--job_name={told['name']}"]):
            raise ConfigError(Problem(f"{job} runs on as it was", "update", "see why above"))


def _same_run(flags: list[str], run_id: str) -> list[str]:
    """The flags under the name of the run that is replaced: what it has published is known by it."""
    return flags if any(flag.startswith("--run_id=") for flag in flags) else [*flags, f"--run_id={run_id}"]


def _state(told: dict[str, Any]) -> str:
    state = told.get("currentState", "JOB_STATE_UNKNOWN").removeprefix("JOB_STATE_").lower()
    wanted = told.get("requestedState", "").removeprefix("JOB_STATE_").lower()
    return f"{state}, asked to be {wanted}" if wanted not in ("", state, "unknown") else state
