#!/bin/sh
# Fetches the pinned icon package into WORK/npm with the ordinary npm client.
set -eu
work=${1:?usage: fetch.sh WORK}
mkdir -p "$work/npm"
cp "$(dirname "$0")/package.json" "$work/npm/"
cd "$work/npm"
npm install --ignore-scripts --no-audit --no-fund
