#!/usr/bin/env bash
# Install the real services that tests talk to, where they are missing; root may use apt, others are told what to ask for.
set -euo pipefail

# DeepSpeed compiles a part of itself when it is first used.
declare -A packages=([chromium]=chromium [prometheus]=prometheus [npm]=npm [g++]=g++)
missing=()
for program in "${!packages[@]}"; do
  command -v "$program" >/dev/null || missing+=("${packages[$program]}")
done

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ]; then
    echo "Missing: ${missing[*]}. As root run: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 2
  fi

  echo "Installing ${missing[*]} ..."
  # The tests start their own servers; Debian's packages must not start theirs.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# An S3 server that is not moto's: what two servers agree on is the protocol.
s3rver=s3rver@3.7.1
services="$(dirname "$0")/../.services"
if [ ! -e "$services/$s3rver" ]; then
  echo "Installing $s3rver ..."
  mkdir -p "$services"
  npm install --silent --no-audit --no-fund --prefix "$services" "$s3rver"
  touch "$services/$s3rver"
fi
