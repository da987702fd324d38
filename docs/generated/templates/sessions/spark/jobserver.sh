#!/usr/bin/env bash
# Runs Beam's job server, the driver of Spark, until it is ended: one job at a time.
#   SPARK_MASTER=spark://host:7077 ./jobserver.sh
set -euo pipefail
exec docker run --rm --net=host "apache/beam_spark3_job_server:2.77.0" \
  --spark-master-url="${SPARK_MASTER:-local[*]}" --job-port="${JOB_PORT:-8099}" --artifacts-dir="${ARTIFACTS_DIR:-/tmp/beam-artifacts}"
