#!/bin/bash
# Trains on all hosts of a Cloud TPU slice, which it creates if there is none.
# Not yet run on a TPU: see docs/pods.md.
#
#   PROJECT=mine ZONE=us-east5-a TYPE=v5p-512 \
#     scripts/tpu_pod.sh NAME configs/jft4b.py:soft-h14 /mnt/shared/runs/h14 \
#     --config.data.source=tfds:DATA
#
# NAME is that of the slice; the other arguments are the config, the directory
# of the run (on a file system that all hosts mount) and further flags of
# train.py. The processes find each other by the metadata of the slice. The same
# command goes on where the run stopped, unless it gave up: do not repeat it in a
# loop, as ssh does not tell code 75 from code 1. Delete the slice when it is done:
#
#   gcloud compute tpus tpu-vm delete NAME --project=mine --zone=us-east5-a

set -euo pipefail

name=${1:?the name of the slice}
config=${2:?the config, FILE or FILE:ARGUMENT}
workdir=${3:?the directory of the run, shared by all hosts}
shift 3
where=(--project="${PROJECT:?}" --zone="${ZONE:?}")
repository=${REPOSITORY:-$(git remote get-url origin)}
commit=$(git rev-parse HEAD)

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
    --command="$1"
}

if ! gcloud compute tpus tpu-vm describe "$name" "${where[@]}" >/dev/null; then
  gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
    --accelerator-type="${TYPE:?}" --version="${VERSION:-v2-alpha-tpuv5}"
fi
on_all_hosts "test -d softmoe || git clone '$repository' softmoe;
  cd softmoe && git fetch --quiet && git checkout --quiet '$commit' &&
  python3 -m venv .venv && .venv/bin/pip install --quiet --editable '.[train,tpu]'"

# On several hosts, of code 75 (stopped midway) ssh tells but that it is not 0.
flags=$(printf '%q ' --config="$config" --workdir="$workdir" "$@")
on_all_hosts "cd softmoe && .venv/bin/python train.py $flags"
