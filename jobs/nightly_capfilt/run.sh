#!/usr/bin/env bash
# Takes what is new: ingest, run, report. With names of steps, those alone: run.sh run report
# Run it again at any time: what is done stays, what is missing is made.
# Exit codes are capfilt's: 0 all done, 1 some shards failed, 2 wrong places, config or models. A report
# that cannot be made is said, and counts only where it is the one step: the dataset is whole without.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while IFS='=' read -r name value || [[ $name ]]; do
    value=${value%$'\r'}
    if [[ $name =~ ^[A-Z_]+$ && -z ${!name:-} ]]; then export "$name=$value"; fi
done < "$here/job.env"
: "${INPUT:?set it in job.env: the folder of img2dataset shards}"
: "${OUTPUT:?set it in job.env: the folder of the dataset}"

# Ends what runs in the background. A fork of this shell forgets a signal until it is the command.
end() {
    local tries=0
    while (( tries++ < 100 )) && cmp -s "/proc/$$/cmdline" "/proc/$1/cmdline" 2> /dev/null; do
        sleep 0.05 || true
    done
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
        while kill -0 "$child" 2> /dev/null; do wait "$child" || true; done  # a signal ends a wait
        exit 130
    fi
    child=''
    if (( code > worst )); then worst=$code; fi
    return "$code"
}
trap 'stopped=1; if [[ $child ]]; then end "$child"; fi' TERM INT

ingest() {
    local list
    for list in ${URLS:+"$URLS"/*.parquet}; do
        if [[ ! -e $list ]]; then
            echo "run.sh: URLS=$URLS: no list of URLs there, *.parquet" >&2
            worst=2
        elif [[ ! -e $list.done ]] &&
            attempt capfilt ingest "$list" "$INPUT/$(basename "$list" .parquet)"; then
            touch "$list.done"
        fi
    done
}

run() {
    attempt capfilt run "$INPUT" "$OUTPUT" --config "$here/config.yaml" \
        ${RAY_CLUSTER:+--address "$RAY_CLUSTER"} \
        ${GPUS_PER_WORKER:+--gpus-per-worker "$GPUS_PER_WORKER"} || (( $? == 1 )) || exit "$worst"
}

report() {
    local before=$worst
    if ! attempt capfilt report "$OUTPUT"; then
        echo "run.sh: no report was made; the dataset is as the steps before have left it" >&2
        if (( $1 > 1 )); then worst=$before; fi
    fi
}

if (( $# == 0 )); then set -- ingest run report; fi
steps=$#
for step in "$@"; do
    case $step in
        ingest) ingest ;;
        run) run ;;
        report) report "$steps" ;;
        *) echo "run.sh: $step is no step: ingest, run, report" >&2; exit 2 ;;
    esac
done
exit "$worst"
