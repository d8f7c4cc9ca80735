#!/usr/bin/env bash
# Resolve every dependency into release/locks/: one resolution (test.txt holds everything), the other locks are cut
# from it, so that all agree on versions. A role with files/requirements.in has a lock of its own beside that file,
# independent of the others. Keeps pinned versions; `release/lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}
locks=release/locks

compile() { # compile <file> <arguments of uv pip compile…>
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-header --no-annotate --output-file "$1" "${@:2}"
  echo "$1: $(grep -c '==' "$1") packages"
}

gateway=gateway_pkg/pyproject.toml
compile "$locks/test.txt" "$gateway" --extra embed --group pyproject.toml:test "$@"
compile "$locks/control.txt" --group pyproject.toml:control --constraints "$locks/test.txt"
compile "$locks/gateway.txt" "$gateway" --constraints "$locks/test.txt"
compile "$locks/gateway-embed.txt" "$gateway" --extra embed --constraints "$locks/test.txt"
compile "$locks/llamacpp.txt" --group pyproject.toml:llamacpp --constraints "$locks/test.txt"
compile "$locks/supervisor.txt" --group pyproject.toml:supervisor --constraints "$locks/test.txt"

for own in roles/*/files/requirements.in; do
  [[ ! -e $own ]] || compile "${own%/*}/lock.txt" "$own" "$@"
done
