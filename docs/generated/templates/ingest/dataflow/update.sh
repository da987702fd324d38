#!/usr/bin/env bash
# Replaces a running stream by one of the template as it is now, under the same name: its state goes over by the labels of its steps.
#   ./update.sh JOB_NAME
set -euo pipefail
exec "$(dirname "$0")/run.sh" "${1:?the name of the running job}" --update "${@:2}"
