#!/bin/sh
# Writes the lock files beside this script from pyproject.toml (`make lock`).
# Versions already locked stay; `make lock UPGRADE=--upgrade` takes the newest that fit.
# uv comes from the package index into a throwaway environment; pip's find-links and certificate are honoured.
set -eu
cd "$(dirname "$0")/../.."
locks=configs/locks
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check uv

if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE="$PIP_CERT"; fi
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    export UV_FIND_LINKS="$PIP_FIND_LINKS"
else
    export UV_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
fi

# compile NAME ARGUMENT...: resolves pyproject.toml for Linux and Python 3.11 into $tmp/NAME.
compile() {
    name=$1
    shift
    [ ! -f "$locks/$name" ] || cp "$locks/$name" "$tmp/$name"
    "$tmp/venv/bin/uv" pip compile --quiet pyproject.toml --output-file "$tmp/$name" ${UPGRADE:-} "$@" \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 --index-strategy unsafe-best-match \
        --no-annotate --no-header --no-emit-index-url --no-emit-find-links
}

# write NAME TEXT [LOCK...]: the resolved NAME, less the packages that every LOCK holds already.
write() {
    name=$1 text=$2
    shift 2
    printf '# %s\n# Written by `make lock`, installed with `pip install --no-deps`.\n' "$text" >"$locks/$name.new"
    awk -F '==' -v locks=$# 'FILENAME != last { seen[$1]++; next } locks == 0 || seen[$1] < locks' \
        last="$tmp/$name" "$@" "$tmp/$name" >>"$locks/$name.new"
    mv "$locks/$name.new" "$locks/$name"
}

# The CUDA builds of torch's companions break CPU torch, and triton (1 GB) has no use without a GPU.
for package in torchvision torchaudio torchcodec triton; do
    echo "$package ; sys_platform == 'never'"
done >"$tmp/never"

compile cpu.txt --extra cpu --override "$tmp/never"
[ -f "$locks/gpu.txt" ] || grep -v '^torch==' "$tmp/cpu.txt" >"$tmp/gpu.txt"
compile gpu.txt --extra gpu
sort "$tmp/cpu.txt" "$tmp/gpu.txt" | uniq -d >"$tmp/both"
compile dev.txt --extra dev --constraint "$tmp/both"
compile peers.txt --extra peers --constraint "$tmp/both" --constraint "$tmp/dev.txt"

write cpu.txt "The service on a machine without GPUs."
write gpu.txt "The service on a machine with NVIDIA GPUs."
write dev.txt "What tests and linters need beside cpu.txt or gpu.txt." "$locks/cpu.txt" "$locks/gpu.txt"
write peers.txt "What \`make compare\` needs beside those." "$locks/cpu.txt" "$locks/gpu.txt"
