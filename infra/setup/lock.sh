#!/usr/bin/env bash
# Makes locks/requirements.lock (everything but torch and what it brings), locks/torch.lock, and for the
# environment beside it locks/tensorflow.lock again.
# Hashes, no addresses: any index or mirror can serve them.
#
#   UV=…   the uv to use (default: the one on PATH, else the one that bootstrap.sh fetched)
#   make lock LOCK_ARGS=--upgrade   to move the versions
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${UV:-$(command -v uv || echo .venv/uv/bin/uv)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile=("$uv" pip compile -q --python-version 3.11 --no-annotate --no-emit-index-url --no-emit-find-links)
# The present locks are the starting point: without --upgrade only what pyproject.toml asks for moves.
grep -hE '^[A-Za-z0-9._-]+==' locks/requirements.lock locks/torch.lock 2>/dev/null | sed 's/ .*//' | sort -u > "$work/all.txt" || true
"${compile[@]}" --no-header pyproject.toml --extra dev ${LOCK_ARGS:-} -o "$work/all.txt"

grep -E '^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z-]*)==' "$work/all.txt" > "$work/torch-family.txt"
omitted=()
while IFS== read -r name _; do omitted+=(--no-emit-package "$name"); done < "$work/torch-family.txt"
"${compile[@]}" --generate-hashes --custom-compile-command "make lock" -c "$work/all.txt" \
    "${omitted[@]}" pyproject.toml --extra dev -o "$work/requirements.lock"
grep -E '^(torch|torchvision)==' "$work/all.txt" > "$work/torch.in"
"${compile[@]}" --generate-hashes --custom-compile-command "make lock" -c "$work/all.txt" \
    "$work/torch.in" -o "$work/torch.lock"
# An environment of its own, with versions of its own: it shares nothing with the ones above.
"${PYTHON:-python3}" -c 'import tomllib
for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["tensorflow"]:
    print(line)' > "$work/tensorflow.in"
sed -n '/^[A-Za-z0-9._-]\+==/s/ .*//p' locks/tensorflow.lock > "$work/tensorflow.txt" 2>/dev/null || true
"${compile[@]}" --no-header "$work/tensorflow.in" ${LOCK_ARGS:-} -o "$work/tensorflow.txt"
"${compile[@]}" --generate-hashes --custom-compile-command "make lock" -c "$work/tensorflow.txt" \
    "$work/tensorflow.in" -o "$work/tensorflow.lock"

if grep -nE '://|file:|^-|/tmp|/home' "$work"/*.lock; then
    echo "chipline: the locks name an address or a path (above). Unset the index options and run again." >&2
    exit 1
fi
mv "$work/requirements.lock" "$work/torch.lock" "$work/tensorflow.lock" locks/
