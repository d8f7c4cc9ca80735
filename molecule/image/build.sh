#!/usr/bin/env bash
# Builds the systemd host image of the tests, localhost/appliance-host:<VERSION_ID>, out of Debian's packages.
# Does nothing when the image was already built by this very script; the unpacked system is cached in build/image/.
#
#   SUITE=bookworm    the Debian suite (a debootstrap script of that name must exist)
set -euo pipefail

SUITE=${SUITE:-bookworm}
PACKAGES=(systemd systemd-sysv dbus python3 python3-venv python3-apt iproute2 nftables ufw openssh-server sudo
  ca-certificates curl procps logrotate)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$here/../../build/image
export CONTAINERS_CONF=$here/containers.conf

recipe=$({ cat "${BASH_SOURCE[0]}"; echo "$SUITE"; } | sha256sum | cut -c1-16)
tarball=$cache/$SUITE-$recipe.tar

if [[ -n $(podman images --quiet --filter "label=appliance.recipe=$recipe") ]]; then
  exit 0
fi
if [[ $EUID -ne 0 ]]; then
  echo "build.sh: debootstrap needs root; type: sudo $0" >&2
  exit 2
fi

# The mirror is the one that this machine's own apt uses for its own suite.
mirror() {
  local codename
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  # shellcheck disable=SC2016  # apt itself fills in $(SITE) and $(RELEASE)
  apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
    awk -v codename="$codename" '$2 == codename && !site {site = $1} END {print site}'
}

if [[ ! -f $tarball ]]; then
  site=$(mirror)
  if [[ -z $site ]]; then
    echo "build.sh: apt knows no mirror for this machine's suite; type: apt-get update" >&2
    exit 2
  fi
  mkdir -p "$cache"
  root=$(mktemp -d "$cache/root.XXXXXX")
  trap 'rm -rf --one-file-system "$root" "$tarball.part"' EXIT
  included=$(IFS=, && echo "${PACKAGES[*]}")
  debootstrap --variant=minbase --include="$included" "$SUITE" "$root" "$site" >"$cache/debootstrap.log" || {
    tail -n 20 "$cache/debootstrap.log" >&2
    exit 1
  }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  # Every host gets an identity of its own at its first start.
  : >"$root/etc/machine-id"
  rm -f "$root/etc/hostname" "$root/etc/resolv.conf"
  # A background upgrade would hold dpkg's lock in the middle of a test.
  ln -sf /dev/null "$root/etc/systemd/system/apt-daily.timer"
  ln -sf /dev/null "$root/etc/systemd/system/apt-daily-upgrade.timer"
  tar -C "$root" -cf "$tarball.part" .
  rm -f "$cache/$SUITE"-*.tar
  mv "$tarball.part" "$tarball"
fi

version=$(tar -xOf "$tarball" ./usr/lib/os-release | sed -n 's/^VERSION_ID="\?\([^"]*\)"\?$/\1/p')
podman import --quiet --change "LABEL appliance.recipe=$recipe" "$tarball" "localhost/appliance-host:$version" >/dev/null
podman image prune --force --filter label=appliance.recipe >/dev/null # the image that had the name before
echo "localhost/appliance-host:$version"
