#!/usr/bin/env bash
# Takes what is new in INPUT since the last night. From cron, each night at two:
#   0 2 * * *  INPUT=s3://bucket/web OUTPUT=s3://bucket/dataset /path/to/nightly_capfilt/run.sh
set -euo pipefail
: "${INPUT:?set INPUT to the folder that img2dataset writes}"
: "${OUTPUT:?set OUTPUT to the folder of the dataset}"
exec capfilt run "$INPUT" "$OUTPUT" \
    --config "$(dirname "$0")/config.yaml" ${RAY_CLUSTER:+--address "$RAY_CLUSTER"}
