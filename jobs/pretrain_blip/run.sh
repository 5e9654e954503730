#!/usr/bin/env bash
# Trains until the training is finished; a finished one is nothing to do, another OUT another one.
# Run it again at any time: it goes on from the last checkpoint.
# Exit codes are capfilt's: 0 done, 1 the training cannot go on, 2 wrong places, config or models,
# 130 stopped.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while IFS='=' read -r name value || [[ $name ]]; do
    value=${value%$'\r'}
    if [[ $name =~ ^[A-Z_]+$ && -z ${!name:-} ]]; then export "$name=$value"; fi
done < "$here/job.env"
: "${OUT:?set it in job.env: the folder of the training, which every machine sees}"
OUT=$(date -u "+$OUT")

# Ends what runs in the background. A fork of this shell forgets a signal until it is the command.
end() {
    while cmp -s "/proc/$$/cmdline" "/proc/$1/cmdline"; do sleep 0.05; done
    kill -TERM "$1" 2> /dev/null || true
}

# Runs a command, which gets the signals that this script gets, and remembers the worst exit code.
worst=0 child='' stopped=''
attempt() {
    local code=0
    if [[ $stopped ]]; then exit 130; fi
    "$@" &
    child=$!
    if [[ $stopped ]]; then end "$child"; fi  # it came just before
    wait "$child" || code=$?
    if [[ $stopped ]]; then
        wait "$child" 2> /dev/null || true
        exit 130
    fi
    if (( code > worst )); then worst=$code; fi
    return "$code"
}
trap 'stopped=1; if [[ $child ]]; then end "$child"; fi' TERM INT

train() {
    attempt capfilt train blip_pretrain --config "$here/config.yaml" --out "$OUT" \
        ${RAY_CLUSTER:+--address "$RAY_CLUSTER"} \
        ${NUM_WORKERS:+--num-workers "$NUM_WORKERS"} \
        --gpus-per-worker "${GPUS_PER_WORKER:-1}" || exit "$worst"
}

if (( $# == 0 )); then set -- train; fi
for step in "$@"; do
    case $step in
        train) train ;;
        *) echo "run.sh: $step is no step: train" >&2; exit 2 ;;
    esac
done
exit "$worst"
