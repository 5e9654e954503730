#!/usr/bin/env bash
# Ray Jobs: ingests here, runs on the cluster at RAY_JOBS and follows its log, then reports here.
# The run goes on when this ends; capfilt jobs, logs and stop see to it. One that is still at work
# is not started again. INPUT, OUTPUT and capfilt are to be found on every node, and here.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while IFS='=' read -r name value || [[ $name ]]; do
    value=${value%$'\r'}
    if [[ $name =~ ^[A-Z_]+$ && -z ${!name:-} ]]; then export "$name=$value"; fi
done < "$here/job.env"
: "${INPUT:?set it in job.env: the folder of img2dataset shards}"
: "${OUTPUT:?set it in job.env: the folder of the dataset}"
: "${RAY_JOBS:?set it in job.env: where the cluster answers, http://HEAD:8265}"

code=0
bash "$here/run.sh" ingest || code=$?
job=$(capfilt submit "$INPUT" "$OUTPUT" --config "$here/config.yaml" --address "$RAY_JOBS" \
    ${GPUS_PER_WORKER:+--gpus-per-worker "$GPUS_PER_WORKER"})
capfilt logs "$job" --follow --address "$RAY_JOBS" || code=$?
bash "$here/run.sh" report || true  # it has said why; the dataset is whole without
exit "$code"
