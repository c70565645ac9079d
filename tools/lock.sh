#!/usr/bin/env bash
# Compiles the locks: constraints.txt for developers, and one hashed lock per device line for the image.
# The developer environment is resolved first and constrains the others, so the local runner and the endpoint agree.
set -euo pipefail
cd "$(dirname "$0")/.."
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
WHEELS=$(mktemp -d)
trap 'rm -rf "$WHEELS"' EXIT
TORCH=$(sed -n 's/^torch==//p' templates/locks/scoring.in)

# pip finds the CPU wheel on its configured sources; uv then reads it from the folder.
python3 -m pip download -q --no-deps --extra-index-url "$TORCH_CPU_INDEX" -d "$WHEELS" "torch==$TORCH"
HASH=$(sha256sum "$WHEELS"/torch-*.whl | cut -d' ' -f1)

compile() { uv pip compile -q --python-platform "x86_64-manylinux_${GLIBC:-2_28}" --no-header --no-emit-find-links --no-annotate "$@"; }
# The tests' Terraform asks for a newer glibc than the images' packages.
GLIBC=2_35 compile --python-version 3.11 --extra dev --extra bench --find-links "$WHEELS" pyproject.toml templates/locks/scoring.in -o constraints.txt
sed -i "s/^torch==.*/torch==$TORCH/" constraints.txt

# The Python of each base image (templates/images.json).
compile --python-version 3.11 --generate-hashes -c constraints.txt --find-links "$WHEELS" \
    templates/locks/scoring.in -o templates/locks/cpu.lock
sed -i "1i --extra-index-url $TORCH_CPU_INDEX" templates/locks/cpu.lock
grep -q "$HASH" templates/locks/cpu.lock || { echo "cpu.lock misses the hash of the CPU wheel of torch" >&2; exit 1; }
compile --python-version 3.12 --generate-hashes -c constraints.txt templates/locks/scoring.in -o templates/locks/cuda13.lock

# Batch images have the packages by which Azure ML runs a batch script too, which take older versions of a few others:
# the device line's versions are kept wherever they can be.
for line in cpu:3.11 cuda13:3.12; do
    grep -v '^--' "templates/locks/${line%:*}.lock" >"$WHEELS/batch.lock"
    compile --python-version "${line#*:}" --generate-hashes $([ "$line" = cpu:3.11 ] && echo --find-links "$WHEELS") \
        templates/locks/scoring.in templates/locks/batch.in -o "$WHEELS/batch.lock"
    cp "$WHEELS/batch.lock" "templates/locks/${line%:*}-batch.lock"
done
sed -i "1i --extra-index-url $TORCH_CPU_INDEX" templates/locks/cpu-batch.lock

# Packages of some bundles beside a device line's: the HTTP server's, whose one lock serves both Pythons, and OpenVINO.
# What of them no device line has already.
for name in http openvino; do
    compile --python-version 3.11 --generate-hashes -c constraints.txt "templates/locks/$name.in" -o "$WHEELS/$name.lock"
    awk 'NR == FNR { if ($1 ~ /==/) known[$1] = 1; next } /^[^ ]/ { keep = !($1 in known) } keep' \
        templates/locks/cpu.lock "$WHEELS/$name.lock" >"templates/locks/$name.lock"
done

# What reads and resamples sound, of bundles whose task hears: what of it no other lock has. One lock serves both Pythons.
compile --python-version 3.11 --generate-hashes -c constraints.txt templates/locks/speech.in -o "$WHEELS/speech.lock"
awk 'NR == FNR { if ($1 ~ /==/) known[$1] = 1; next } /^[^ ]/ { keep = !($1 in known) } keep' \
    templates/locks/cpu.lock "$WHEELS/speech.lock" >templates/locks/speech.lock

# What a CI job installs, around the wheel of this project that `mii-azure ci` ships.
compile --python-version 3.11 --generate-hashes -c constraints.txt --find-links "$WHEELS" --extra diffusion \
    pyproject.toml -o "$WHEELS/ci.lock"
{ echo "--extra-index-url $TORCH_CPU_INDEX"; cat "$WHEELS/ci.lock"; } >templates/locks/ci.lock

# The licences, from the metadata of what is installed.
python3 -m tools.licences
