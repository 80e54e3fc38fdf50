#!/usr/bin/env bash
# Sets up, then runs the main job: the quickstart recipe. Arguments are passed on to it.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec .venv/bin/optkit run quickstart "$@"
