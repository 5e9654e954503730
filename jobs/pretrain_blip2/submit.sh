#!/usr/bin/env bash
# Ray Jobs: sends this folder to the cluster at RAY_JOBS, where run.sh runs, and follows its log.
# The job goes on when this ends. A second one of the same minute is refused; one of the same OUT
# ends by itself. capfilt, OUT and the dataset are to be found on every node.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while IFS='=' read -r name value || [[ $name ]]; do
    value=${value%$'\r'}
    if [[ $name =~ ^[A-Z_]+$ && -z ${!name:-} ]]; then export "$name=$value"; fi
done < "$here/job.env"
: "${RAY_JOBS:?set it in job.env: where the cluster answers, http://HEAD:8265}"

# A job that is stopped ends its step and writes a checkpoint; Ray's own 3 s are too few.
exec ray job submit --address "$RAY_JOBS" --working-dir "$here" \
    --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}' \
    --submission-id "$(basename "$here")-$(date -u +%Y%m%dT%H%MZ)" \
    -- env RAY_CLUSTER=auto bash run.sh
