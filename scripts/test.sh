#!/usr/bin/env bash
# Sets up, then runs every check and the tests, in a process for each core. Arguments are passed on to pytest.
#   scripts/test.sh --fast [ARGUMENTS]     leaves out the tests marked slow
set -euo pipefail
cd "$(dirname "$0")/.."
fast=()
if [ "${1:-}" = --fast ]; then
  shift
  fast=(-m "not slow")
fi
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1
ruff check .
ruff format --check .
mypy
lint-imports --no-cache
NO_MKDOCS_2_WARNING=1 mkdocs build --strict
export OMP_WAIT_POLICY=passive # an idle thread must not spin on a core that another process's tests need
exec pytest --numprocesses auto --maxprocesses 8 --dist worksteal "${fast[@]}" "$@"
