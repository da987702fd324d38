"""Starts Beam's Python worker for a runner that starts processes (`--environment_type=PROCESS`): what the `boot` of Beam's images does.

It asks the runner for the job's options, addresses and artifacts, and hands them to the worker. It installs nothing: packages
come from the environment that it runs in. Runners call it as PROGRAM --id=ID --provision_endpoint=HOST:PORT.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> None:
    """Runs one worker until the runner lets it go."""
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2 as api
    from apache_beam.portability.api import beam_provision_api_pb2_grpc as services
    from apache_beam.runners.worker import sdk_worker_main

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    given, _ = parser.parse_known_args(argv)
    me = [("worker_id", given.id)]
    with grpc.insecure_channel(given.provision_endpoint) as channel:
        info = services.ProvisionServiceStub(channel).GetProvisionInfo(api.GetProvisionInfoRequest(), metadata=me).info
    with tempfile.TemporaryDirectory(prefix="worker-") as folder:
        _stage(info, Path(folder) / "staged", me)
        os.environ.update(_told(info, Path(folder)), WORKER_ID=given.id)
        sdk_worker_main.main([])


def importable() -> str:
    """What this process can import besides what comes with its interpreter."""
    own = [Path(path).resolve() for path in (sys.prefix, sys.base_prefix)]
    found = [path for path in map(Path, dict.fromkeys(sys.path)) if path.is_absolute() and path.is_dir()]
    return os.pathsep.join(str(path) for path in found if not any(path.resolve().is_relative_to(one) for one in own))


def write_boot(file: Path, log: Path) -> None:
    """Writes the program that runners call, which runs this module with this interpreter; what it says goes to a log."""
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m tiebeam.lab._boot "$@" >>"{log}" 2>&1\n')  # runners throw it away
    file.chmod(0o755)


def _told(info: Any, folder: Path) -> dict[str, str]:
    """What the worker reads from its environment."""
    from google.protobuf import json_format, text_format

    (folder / "options.json").write_text(json_format.MessageToJson(info.pipeline_options))
    return {
        "PIPELINE_OPTIONS_FILE": str(folder / "options.json"),
        "SEMI_PERSISTENT_DIRECTORY": str(folder),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
    }


def _stage(info: Any, folder: Path, me: list[tuple[str, str]]) -> None:
    """Fetches the artifacts of the job under the names that it gave them."""
    import grpc
    from apache_beam.portability.api import beam_artifact_api_pb2 as api
    from apache_beam.portability.api import beam_artifact_api_pb2_grpc as services
    from apache_beam.portability.api import beam_runner_api_pb2 as model

    folder.mkdir()
    with grpc.insecure_channel(info.artifact_endpoint.url) as channel:
        service = services.ArtifactRetrievalServiceStub(channel)
        asked = api.ResolveArtifactsRequest(artifacts=info.dependencies)
        for artifact in service.ResolveArtifacts(asked, metadata=me).replacements if info.dependencies else ():
            name = model.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name
            with (folder / Path(name).name).open("wb") as file:
                for block in service.GetArtifact(api.GetArtifactRequest(artifact=artifact), metadata=me):
                    file.write(block.data)


if __name__ == "__main__":
    main(sys.argv[1:])
