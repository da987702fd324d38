"""What `tiebeam submit` does: hands a job to a cluster or a service, says its id and where it is seen, and does not wait.

On Flink the job travels as one jar, made here, that the cluster runs by itself; `--output_executable_path=FILE.jar` keeps the jar instead,
for `flink run` and for Kubernetes. `--savepoint_path` and `--parallelism` are told to Flink with the call that runs the jar,
since Beam's own submission leaves them out.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    WorkerOptions,
)

from tiebeam import __version__, dataflow_rest, registry, wheel
from tiebeam.errors import ConfigError, Problem
from tiebeam.flink_rest import FlinkError, Rest
from tiebeam.pipelines import _cursor, _job
from tiebeam.runners import not_to_submit

SUBMIT_SECS = 600


@dataclass
class Submitted:
    """A job that was handed over: `job` is the id under which the platform knows it, `page` where it is seen."""

    pipeline: str
    run_id: str
    runner: str
    dead_letters: str
    job: str | None = None
    page: str | None = None
    file: str | None = None


def submit(name: str, argv: list[str]) -> int:
    """Submits a pipeline from its flags and returns the exit code."""
    as_json = "--json" in argv
    try:
        told = hand_over(name, [a for a in argv if a != "--json"])
    except _cursor.NothingNewError as e:
        print(json.dumps({"pipeline": name, "run_id": e.last}, indent=2) if as_json else f"{name}: {e}")
        return 0
    except _job.JobFailedError as e:
        print(f"{name}: {e}", file=sys.stderr)
        return e.exit_code
    if as_json:
        print(json.dumps(asdict(told), indent=2))
        return 0
    print(f"{name}: run {told.run_id} on {told.runner}; rejected rows go to {told.dead_letters}")
    for what in ("job", "page", "file"):
        if value := getattr(told, what):
            print(f"{what:<5} {value}")
    return 0


def hand_over(name: str, argv: list[str]) -> Submitted:
    """Checks, reaches, builds and submits. Raises ConfigError when it cannot start, JobFailedError when the platform refuses it."""
    job, p, delivery = check(name, argv)
    told = Submitted(name, job.run_id, job.runner, delivery.store_location())
    submitting = {"FlinkRunner": _on_flink, "DataflowRunner": _on_dataflow}.get(job.runner, _on_a_job_server)
    print(f"{name}: submitting run {job.run_id} to {job.runner}", file=sys.stderr)
    with _job.quiet():
        try:
            delivery.keep_job({"pipeline": name, "argv": job.argv, "version": __version__})
            submitting(p, told)
        except (ConfigError, _job.JobFailedError):
            delivery.discard()
            raise
        except Exception as e:
            delivery.discard()
            raise _job.JobFailedError(*_job.explain(e)) from (e if logging.getLogger("tiebeam").isEnabledFor(logging.DEBUG) else None)
    return told


def check(name: str, argv: list[str]) -> tuple[_job.Job, Any, Any]:
    """All that can be known to be wrong before a job is handed over: ConfigError. Else the job, its graph and its delivery."""
    if hasattr(registry.pipeline(name), "main"):
        raise ConfigError(Problem(f"{name} runs here, and starts jobs of its own", "submit", f"tiebeam run {name}"))
    job = _job.prepare(name, argv)
    flags = PipelineOptions(job.beam_argv).get_all_options(retain_unknown_options=True)
    if problems := list(not_to_submit(job.runner, flags)):
        raise ConfigError(*problems)
    return job, *_job.assemble(job)


def _on_dataflow(p: Any, told: Submitted) -> None:
    google = p.options.view_as(GoogleCloudOptions)
    _stage_itself(p)
    result = p.run()
    if google.template_location:  # the launcher of a flex template takes the job from there
        told.file = google.template_location
        return
    told.job = result.job_id()
    told.page = dataflow_rest.Rest(google.project, google.region).page(str(told.job))


def _stage_itself(p: Any) -> None:
    """Sends the tiebeam that runs to the workers, unless their image has one or something else brings it."""
    setup = p.options.view_as(SetupOptions)
    brought = setup.setup_file or setup.requirements_file or setup.extra_packages
    if brought or p.options.view_as(WorkerOptions).sdk_container_image:
        return
    file = Path(p.local_tempdir) / wheel.name()
    file.write_bytes(wheel.made()[1])
    setup.extra_packages = [str(file)]


def _on_a_job_server(p: Any, told: Submitted) -> None:
    result = p.run()
    told.job = getattr(result, "_job_id", None)


def _on_flink(p: Any, told: Submitted) -> None:
    from apache_beam.runners.portability.flink_runner import FlinkRunner

    options, portable = p.options.view_as(FlinkRunnerOptions), p.options.view_as(PortableOptions)
    if portable.job_endpoint:
        _on_a_job_server(p, told)
        return
    server = _server(p.options, portable.output_executable_path)

    def serve(asked: PipelineOptions) -> Any:
        asked.view_as(FlinkRunnerOptions).flink_master = "[auto]"  # to a jar, the cluster that runs it is its own
        return server

    options.flink_submit_uber_jar = True  # else flags that only Java knows do not travel
    p.runner = FlinkRunner()
    p.runner.default_job_server = serve
    p.run()
    if portable.output_executable_path:
        told.file = portable.output_executable_path
        return
    told.job = server.made.flink_id
    told.page = f"http://{server.address}/#/job/{told.job}/overview"


def _server(options: PipelineOptions, file: str | None) -> Any:
    """What Beam takes for a job server: makes jars, and has Flink run them, or keeps them as a file."""
    from apache_beam.runners.portability.flink_uber_jar_job_server import FlinkUberJarJobServer

    flags = options.get_all_options(retain_unknown_options=True)

    class Server(FlinkUberJarJobServer):
        address = flags["flink_master"].strip().removeprefix("http://").rstrip("/")
        made: Any = None

        def flink_version(self) -> str:
            return flags["flink_version"] if file else ".".join(Rest(self.address).version().split(".")[:2])

        def create_beam_job(self, *job: Any) -> Any:
            self.made = _job_of(self.address, flags, file)(f"http://{self.address}", self.executable_jar(), *job)
            return self.made

    return Server(f"http://{Server.address}", options)


def _job_of(address: str, flags: dict[str, Any], file: str | None) -> Any:
    from apache_beam.runners.portability.flink_uber_jar_job_server import FlinkBeamJob

    class Job(FlinkBeamJob):
        flink_id: str | None = None

        def run(self) -> None:
            self._stop_artifact_service()
            if file:
                shutil.move(self._jar, file)
                return
            try:
                self.flink_id = self._flink_job_id = _run_jar(Rest(address, SUBMIT_SECS), Path(self._jar), flags)
            finally:
                Path(self._jar).unlink(missing_ok=True)

    return Job


def _run_jar(rest: Rest, jar: Path, flags: dict[str, Any]) -> str:
    try:
        return rest.run_jar(  # Flink builds the graph before it answers
            rest.upload(jar),
            savepoint=flags.get("savepoint_path"),
            parallelism=int(flags.get("parallelism") or 0) or None,
            allow_dropped=str(flags.get("allow_non_restored_state")).lower() == "true",
        )
    except (OSError, FlinkError) as e:
        raise _job.JobFailedError(f"Flink at {rest.address} did not take the job: {e}") from None
