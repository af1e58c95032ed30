#!/usr/bin/env bash
# Measures what docs/performance.md tells of decode and prefill on one GPU, and writes rows as in
# h200.json.
#
#     docs/performance/measure.sh target/release/drystone rows.json
#
# Takes 2 to 3 minutes on an H200. Needs Python 3, and Git to name the commit.
set -euo pipefail
drystone=$1 out=$2 here=$(dirname "$0")
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT

bench() {
    "$drystone" bench offline --backend cuda --json \
        --prompts 4 --prompt 2048 --batch 1,8,32,64 --steps 60 "$@" | tee -a "$lines"
}

bench --shape 8b --lora plain --adapters 32
bench --shape 8b --lora plain --adapters 32 --lora-rank 64
bench --shape 70b-tp8 --lora bd --adapters 8 --lora-rank 128
bench --shape 70b-tp8 --lora plain --adapters 8 --lora-rank 64
python3 "$here/rows.py" "$(git -C "$here" rev-parse --short HEAD)" <"$lines" >"$out"
