#!/usr/bin/env bash
# `make clean`: stop and remove everything that `make` made. MODE=system: also services, users, rules, data, logs.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -e .appliance || ${MODE:-rootless} == system ]]; then
  release/play.sh playbooks/remove.yml --extra-vars appliance_remove_confirmed=true
fi
rm -rf .venv build .appliance inventories/local/secrets .ansible .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
