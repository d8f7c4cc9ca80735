#!/usr/bin/env bash
# Installs the Debian packages that the tests need and builds the image of the test hosts. Does nothing the second time.
set -euo pipefail

PACKAGES=(podman runc netavark catatonit iptables iproute2 debootstrap nftables openssh-client curl shellcheck systemd libgomp1
  logrotate)

if [[ ! -f /etc/debian_version ]]; then
  echo "setup.sh: the test hosts need Debian or Ubuntu; here the tests that use them are skipped" >&2
  exit 3
fi

missing=()
for package in "${PACKAGES[@]}"; do
  status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done
command -v npm >/dev/null || missing+=(nodejs npm)

if ((${#missing[@]})); then
  if [[ $EUID -ne 0 ]]; then
    echo "setup.sh: missing ${missing[*]}; type: sudo molecule/setup.sh" >&2
    exit 2
  fi
  apt-get update --quiet=2
  DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}"
fi

"$(dirname "${BASH_SOURCE[0]}")/image/build.sh"
