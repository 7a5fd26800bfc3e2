#!/usr/bin/env bash
# Builds .venv-tensorflow from locks/tensorflow.lock: where packages built on TensorFlow or Keras run. The host
# finds it by itself (tasks/host/interpreters.py). Needs .venv, which `make tensorflow` builds before.
#
#   UV=…   the uv to use (default: the one on PATH, else the one that bootstrap.sh fetched)
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${UV:-}
[ -n "$uv" ] || { uv --version >/dev/null 2>&1 && uv=uv; } || uv=.venv/uv/bin/uv
folder=.venv-tensorflow

unset VIRTUAL_ENV UV_PROJECT_ENVIRONMENT UV_SYSTEM_PYTHON
[ -x "$folder/bin/python" ] || .venv/bin/python -m venv --without-pip "$folder"
# The lock is complete, so nothing is resolved. What an older lock brought and this one does not goes.
"$uv" pip sync -q --python "$folder/bin/python" --require-hashes locks/tensorflow.lock
"$folder/bin/python" -c 'import tensorflow; print("TensorFlow", tensorflow.__version__, "is ready")' 2>/dev/null
