#!/usr/bin/env bash
# Submits sessions to a running session cluster, prints the job's id and page, and ends.
#   FLINK_MASTER=host:8081 ./submit.sh [--flags of the pipeline and of Beam]
#   ./submit.sh --savepoint_path=s3://…/savepoint-1   goes on from a savepoint
# FLINK_JOB_SERVER_JAR names Beam's job server jar; without it, it is downloaded from Maven Central for the cluster's version.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
jar=(${FLINK_JOB_SERVER_JAR:+"--flink_job_server_jar=$FLINK_JOB_SERVER_JAR"})
exec "${TIEBEAM:-tiebeam}" submit sessions --runner=FlinkRunner --flink_master="${FLINK_MASTER:-localhost:8081}" \
  --options_file="$here/job.yaml" --options_file="$here/flink.yaml" ${jar[@]+"${jar[@]}"} "$@"
