#!/usr/bin/env bash
# Starts a job from the template, with the parameters in parameters.yaml. It prints the job's id.
#   ./run.sh [JOB_NAME] [more flags of gcloud dataflow flex-template run]
set -euo pipefail
cd "$(dirname "$0")"
PROJECT="${PROJECT:-CHANGE_ME}"
REGION="${REGION:-europe-west1}"
BUCKET="${BUCKET:-CHANGE_ME}"
job="${1:-tiebeam-ingest-$(date +%Y%m%d-%H%M%S)}"

gcloud dataflow flex-template run "$job" \
  --project="$PROJECT" --region="$REGION" \
  --template-file-gcs-location="gs://$BUCKET/templates/tiebeam-ingest.json" \
  --staging-location="gs://$BUCKET/staging" --temp-location="gs://$BUCKET/temp" \
  --flags-file=parameters.yaml "${@:2}"
