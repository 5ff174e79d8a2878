#!/bin/sh
# Trains the adapters that come with lorry by `lorry train`, from the icons on. `assets.sh WORK`, with .venv set up.
set -eu
work=${1:?usage: assets.sh WORK}
here=$(dirname "$0")
.venv/bin/python -m pip --disable-pip-version-check install --quiet resvg-py==0.5.0
sh "$here/fetch.sh" "$work"
.venv/bin/python "$here/adapter_pictures.py" --work "$work"
train() {
    prior=
    if [ "$1" = zuzu ]; then prior="--prior $work/pictures/zuzu-prior"; fi
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 .venv/bin/lorry train "$work/pictures/$1" --config "$here/adapters/$1.toml" $prior \
        --out "$work/runs/$1"
}
# Two at a time: a model this small gains nothing from a second thread.
(train line && train pixel) &
train neon
train zuzu
wait $!
echo "the adapters are in $work/runs/*/: compare them, then copy them to src/lorry/assets/loras"
