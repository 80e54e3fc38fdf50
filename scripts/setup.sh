#!/usr/bin/env bash
# Makes .venv in the checkout and installs optkit there, at the versions of constraints.txt.
#   scripts/setup.sh [EXTRAS]      EXTRAS: any of pyproject.toml's besides report, such as dev,benchmark; none by default
# PYTHON names the interpreter (3.11 or newer), python3 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "optkit needs Python 3.11 or newer; $python is $("$python" --version). Set PYTHON to another." >&2
  exit 2
}
command -v g++ >/dev/null || command -v clang++ >/dev/null || {
  echo "optkit's inductor engine needs a C++ compiler: install g++." >&2
  exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv

# what is installed is kept, so that a second call needs no network
wanted="$(cat pyproject.toml constraints.txt | sha256sum) ${1:-} $PWD"
if [ -x .venv/bin/optkit ] && [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[report${1:+,$1}]"
echo "$wanted" > .venv/installed
