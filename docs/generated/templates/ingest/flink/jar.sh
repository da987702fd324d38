#!/usr/bin/env bash
# Makes job.jar, which holds the whole job: for `flink run`, and for flinkdeployment.yaml.
#   ./jar.sh && flink run --detached --class org.apache.beam.runners.flink.FlinkPipelineRunner job.jar
#   flink run --fromSavepoint PATH … goes on from a savepoint
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
jar=(${FLINK_JOB_SERVER_JAR:+"--flink_job_server_jar=$FLINK_JOB_SERVER_JAR"})
exec "${TIEBEAM:-tiebeam}" submit ingest --runner=FlinkRunner --flink_version=1.19 --output_executable_path="$here/job.jar" \
  --options_file="$here/job.yaml" --options_file="$here/flink.yaml" \
  --environment_type=EXTERNAL --environment_config=localhost:50000 ${jar[@]+"${jar[@]}"} "$@"
