#!/bin/sh
# Builds app.py into plugin.wasm; wants `pip install componentize-py`.
set -eu
cd "$(dirname "$0")"
# One folder holds this world and, as its dependency, the contract.
wit=$(mktemp -d)
trap 'rm -r "$wit"' EXIT
cp wit/world.wit "$wit/"
mkdir -p "$wit/deps"
cp -r ../../wit "$wit/deps/policy"
# Plugins have no WASI: what Python asks of it is stubbed.
componentize-py --wit-path "$wit" --world score-replicas-only componentize --stub-wasi app \
    --output plugin.wasm
ls -l plugin.wasm
