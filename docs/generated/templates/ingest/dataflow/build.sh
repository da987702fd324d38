#!/usr/bin/env bash
# Builds the image and the flex template of `ingest`. Once for each version of tiebeam, or of your settings.
#   ./build.sh           both
#   ./build.sh image     the image only;  ./build.sh template   the template only
set -euo pipefail
cd "$(dirname "$0")"
PROJECT="${PROJECT:-CHANGE_ME}"
BUCKET="${BUCKET:-CHANGE_ME}"
IMAGE="${IMAGE:-europe-west1-docker.pkg.dev/CHANGE_ME/tiebeam/ingest:0.1.0}"
what="${1:-both}"

if [ "$what" != template ]; then
  gcloud builds submit --project="$PROJECT" --config=cloudbuild.yaml --substitutions="_IMAGE=$IMAGE" .
fi
if [ "$what" != image ]; then
  gcloud dataflow flex-template build "gs://$BUCKET/templates/tiebeam-ingest.json" \
    --project="$PROJECT" --image="$IMAGE" --sdk-language=PYTHON --metadata-file=metadata.json
fi
