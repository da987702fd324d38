#!/usr/bin/env bash
# Submits retail to the job server, and waits for the account of its rows. Batch only: Beam's Spark runner cannot run streams.
#   JOB_ENDPOINT=host:8099 ./submit.sh [--flags of the pipeline and of Beam]
# FILES_TO_STAGE names one small jar when the job server was put together from thin jars: else its whole class path goes with each job.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
jar=(${FILES_TO_STAGE:+"--files_to_stage=$FILES_TO_STAGE"})
exec "${TIEBEAM:-tiebeam}" "${VERB:-run}" retail --runner=SparkRunner --job_endpoint="${JOB_ENDPOINT:-localhost:8099}" \
  --options_file="$here/job.yaml" --options_file="$here/spark.yaml" ${jar[@]+"${jar[@]}"} "$@"
