#!/usr/bin/env bash
# Resolve every dependency into release/locks/: one resolution (test.txt holds everything), the other locks are cut
# from it, so that no two disagree on a version. Keeps what is pinned; `release/lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}
locks=release/locks

compile() { # compile <name> <arguments of uv pip compile…>
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-header --no-annotate --output-file "$locks/$1.txt" "${@:2}"
  echo "$locks/$1.txt: $(grep -c '==' "$locks/$1.txt") packages"
}

gateway=gateway_pkg/pyproject.toml
compile test "$gateway" --extra embed --group pyproject.toml:test "$@"
compile control --group pyproject.toml:control --constraints "$locks/test.txt"
compile gateway "$gateway" --constraints "$locks/test.txt"
compile gateway-embed "$gateway" --extra embed --constraints "$locks/test.txt"
compile llamacpp --group pyproject.toml:llamacpp --constraints "$locks/test.txt"
compile supervisor --group pyproject.toml:supervisor --constraints "$locks/test.txt"
