#!/usr/bin/env bash
# Run a playbook on this machine. MODE=system becomes root by sudo, which asks at most once.
#
# usage: release/play.sh PLAYBOOK [ARGUMENT OF ansible-playbook]…
set -euo pipefail
cd "$(dirname "$0")/.."

arguments=(--inventory inventories/local)
case ${MODE:-rootless} in
  rootless) ;;
  system)
    arguments+=(--extra-vars appliance_mode=system)
    if [[ $EUID -ne 0 ]]; then
      command -v sudo >/dev/null || {
        echo "make: MODE=system needs root; run make as root, or install sudo" >&2
        exit 2
      }
      sudo -n true 2>/dev/null || arguments+=(--ask-become-pass)
    fi
    ;;
  *)
    echo "make: unknown MODE=$MODE; type: make up, or make up MODE=system" >&2
    exit 2
    ;;
esac

release/bootstrap.sh control
# Ansible refuses to run without a UTF-8 locale.
if [[ $(locale charmap 2>/dev/null) != UTF-8 ]]; then
  if [[ $OSTYPE == darwin* ]]; then export LC_ALL=en_US.UTF-8; else export LC_ALL=C.UTF-8; fi
fi
# Ansible ignores the configuration in a directory that others may write: name it. Show only changes and failures.
export ANSIBLE_CONFIG=$PWD/ansible.cfg ANSIBLE_DISPLAY_OK_HOSTS=false ANSIBLE_DISPLAY_SKIPPED_HOSTS=false
export ANSIBLE_CALLBACK_PLUGINS=playbooks/callback_plugins ANSIBLE_STDOUT_CALLBACK=brief
exec .venv/bin/ansible-playbook "${arguments[@]}" "$@"
