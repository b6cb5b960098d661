#!/bin/sh
# Everything that a GPU is asked for, in one call of at most ten minutes: bash bench/gpu.sh DIR
#
# Each stage has its own time limit and writes DIR/STAGE.json and DIR/STAGE.log; one that fails is told and the next one runs.
# A summary of the results comes last.
#
# The order is that of what one wants to know first: do single instructions, then whole kernels compute what they should; how
# fast are they beside PyTorch; then compute-sanitizer with what time is left.
# Exit status: 0 if all went well, 1 if a stage failed, 2 if there is no GPU to measure on.
# PYTHON names the interpreter (python3), TOTAL the seconds for everything (580), STAGES those to run; ARCHIVE a file, as
# results.tar.gz, into which all results are packed again after each stage.

set -u
[ $# -eq 1 ] || { echo "usage: bash bench/gpu.sh DIR" >&2; exit 2; }
mkdir -p "$1" || exit 2
dir=$(cd "$1" && pwd)
case ${ARCHIVE:-} in '' | /*) archive=${ARCHIVE:-} ;; *) archive=$PWD/$ARCHIVE ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
total=${TOTAL:-580}
stages=${STAGES:-build primitives tests ceilings rows ladder memory steps sanitizer}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 CONVKERN_TUNE=0
export CONVKERN_CACHE_DIR="${CONVKERN_CACHE_DIR:-$dir/cache}"
# Where the compiler's library and the assembler are looked for if they are not installed as wheels.
[ -n "${CUDA_HOME:-}" ] || [ ! -d /usr/local/cuda ] || export CUDA_HOME=/usr/local/cuda
start=$(date +%s)

limit_of() {  # seconds that a stage may take
    case $1 in
        facts) echo 40 ;; build) echo 90 ;; primitives) echo 45 ;; tests) echo 110 ;; ceilings) echo 25 ;;
        rows) echo 220 ;; ladder | memory) echo 25 ;; steps) echo 130 ;; *) echo 120 ;;
    esac
}

pack() {  # all results into the archive
    [ -z "${ARCHIVE:-}" ] || (cd "$dir" && tar -czf pack.tmp -- *.json *.log && mv pack.tmp "$archive")
}

run_stage() {  # 0 if the stage went well
    left=$((total - $(date +%s) + start))
    limit=$(limit_of "$1")
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        echo "$1: left out, no time is left"
        return 1
    fi
    rm -f "$dir/$1.json"
    timeout -k 5 "$limit" "$python" -m "convkern.bench.gpu.$1" "$dir" "$limit" >"$dir/$1.log" 2>&1
    status=$?
    case $status in
        0)
            why=$(sed -n 's/^left out: //p' "$dir/$1.log" | head -n 1)
            if [ -n "$why" ]; then echo "$1: left out, $why"; else echo "$1: done"; fi
            ;;
        124 | 137) echo "$1: cut off after $limit s, see $dir/$1.json" ;;
        *)
            echo "$1: failed, see $dir/$1.json and $dir/$1.log, which ends"
            tail -n 3 "$dir/$1.log" | sed 's/^/    /'
            ;;
    esac
    pack
    return $status
}

failed=0
if ! run_stage facts >/dev/null; then
    sentence=$(sed -n '/^no GPU to measure on/p' "$dir/facts.log" | head -n 1)
    if [ -n "$sentence" ]; then
        echo "bench/gpu.sh: $sentence" >&2
        exit 2
    fi
    if [ ! -f "$dir/facts.json" ]; then
        echo "bench/gpu.sh: $python cannot run convkern: $(tail -n 1 "$dir/facts.log")" >&2
        exit 2
    fi
    echo "facts: failed, see $dir/facts.json"
    failed=1
fi

for stage in $stages; do
    run_stage "$stage" || failed=1
done
"$python" -m convkern.bench.gpu.summary "$dir"
echo "$(($(date +%s) - start)) s in all, results in $dir"
exit $failed
