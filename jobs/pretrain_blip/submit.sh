#!/usr/bin/env bash
# Ray Jobs: sends this folder to the cluster at RAY_JOBS, where run.sh runs, and follows its log.
# The job goes on when this ends. A second one of the same minute is refused; one of the same OUT
# ends by itself. capfilt, OUT and the dataset are to be found on every node.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while IFS='=' read -r name value; do
    if [[ $name =~ ^[A-Z_]+$ && -z ${!name:-} ]]; then export "$name=$value"; fi
done < "$here/job.env"
: "${RAY_JOBS:?set it in job.env: where the cluster answers, http://HEAD:8265}"

exec ray job submit --address "$RAY_JOBS" --working-dir "$here" \
    --submission-id "$(basename "$here")-$(date -u +%Y%m%dT%H%MZ)" \
    -- env RAY_CLUSTER=auto bash run.sh
