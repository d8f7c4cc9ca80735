#!/usr/bin/env bash
# `make up`: provision this machine, then print how to use the gateway.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ ${MODE:-rootless} == system ]]; then
  cat <<'TEXT'
MODE=system installs the services of inventories/local on this machine as root:
  systemd units or launchd daemons that start at boot, each with a user of its own
  /var/lib/<service>, /var/log/<service>, /etc/appliance
  firewall rules for the declared ports only; all listeners stay on loopback unless allow_from names addresses
TEXT
  root=
else
  echo "rootless: this user, this directory, loopback only; no start at boot, no firewall, no sandbox (MODE=system has them)"
  root=.appliance
fi

release/play.sh playbooks/site.yml

port=$(.venv/bin/python - "$root/etc/appliance/services.json" <<'PYTHON'
import json, sys
services = json.load(open(sys.argv[1]))["services"]
print(services["gateway"]["port"])
PYTHON
)
url=http://127.0.0.1:$port
token=$PWD/inventories/local/secrets/gateway_token
cat <<TEXT

URL=$url
TOKEN_FILE=$token
curl -sS $url/v1/chat/completions -H "Authorization: Bearer \$(cat '$token')" -H 'Content-Type: application/json' \\
  -d '{"model": "default", "messages": [{"role": "user", "content": "Say hello."}]}'
TEXT
