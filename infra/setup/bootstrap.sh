#!/usr/bin/env bash
# Builds .venv from the locks, through uv. Needs Python 3.11 and a package index, nothing else.
#
#   UV=…                 the uv to use (default: the one on PATH, else one from the package index)
#   UV_TORCH_BACKEND=…   another torch build than the locked one: cpu, cu126, cu130, rocm6.4, …
set -euo pipefail
cd "$(dirname "$0")/../.."
uv_version=0.13.9

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf '\nchipline: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3 python; do
        [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
            2>/dev/null && { echo "$candidate"; return; }
    done
    fail "Python 3.11 was not found. Install it (Debian 12: apt-get install python3), or name it: PYTHON=/path/to/python3.11 make"
}

find_uv() {
    if [ -n "${UV:-}" ]; then echo "$UV"; return; fi
    if uv --version >/dev/null 2>&1; then echo uv; return; fi
    if [ ! -x .venv/uv/bin/uv ]; then
        say "Fetching uv $uv_version from the package index" 
        # Debian keeps ensurepip in python3-venv; without it, a pip that is there will do.
        if "$1" -c 'import ensurepip' 2>/dev/null; then
            "$1" -m venv .venv/uv >&2
            .venv/uv/bin/python -m pip install -q "uv==$uv_version" >&2
        elif "$1" -m pip --version >/dev/null 2>&1; then
            "$1" -m pip install -q --no-deps --target .venv/uv "uv==$uv_version" >&2
        else
            fail "Python has neither venv nor pip. Install them: apt-get install python3-venv"
        fi
    fi
    echo .venv/uv/bin/uv
}

python=$(find_python)
# .venv is made without pip, so that it does not need ensurepip; uv installs into it from outside.
[ -x .venv/bin/python ] || { say "Creating .venv with $("$python" --version)"; "$python" -m venv --without-pip .venv; }
uv=$(find_uv "$python")
# What the person exported for other environments must not decide where we install.
unset VIRTUAL_ENV UV_PROJECT_ENVIRONMENT UV_SYSTEM_PYTHON
install=("$uv" pip install --python .venv/bin/python)
before=$(cat .venv/.torch-backend 2>/dev/null || true)
backend=${UV_TORCH_BACKEND:-${before:-locked}}
unset UV_TORCH_BACKEND
# 2.12.1 and 2.12.1+cpu are the same version to an installer: a change must be asked for.
again=()
[ -z "$before" ] || [ "$before" = "$backend" ] || again=(--reinstall-package torch --reinstall-package torchvision)

# The locks are complete, so nothing is resolved: --no-deps also keeps torch out of the first one.
if [ "$backend" = locked ]; then
    say "Installing from locks/requirements.lock and locks/torch.lock"
    "${install[@]}" "${again[@]}" --no-deps --require-hashes -r locks/requirements.lock -r locks/torch.lock
else
    say "Installing from locks/requirements.lock, and torch for the backend $backend"
    "${install[@]}" --no-deps --require-hashes -r locks/requirements.lock
    mapfile -t pins < <(sed -nE 's/^((torch|torchvision)==[^ ]+).*/\1/p' locks/torch.lock)
    # The lock's other pins (numpy, pillow …) are constraints here, the CUDA libraries are the backend's own.
    sed -nE 's/^([A-Za-z0-9._-]+==[^ ]+).*/\1/p' locks/requirements.lock > .venv/.constraints
    "${install[@]}" "${again[@]}" --torch-backend "$backend" -c .venv/.constraints "${pins[@]}"
fi
"${install[@]}" -q --no-deps --no-build-isolation -e .
echo "$backend" > .venv/.torch-backend
# Gigabytes were written: let them reach the disk now, or the databases of a stack that boots next wait for
# them and call themselves locked.
sync
say "The environment is ready: .venv"
