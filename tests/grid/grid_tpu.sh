#!/bin/bash
set -euo pipefail

# router=top_p,seed=1
gcloud compute tpus queued-resources create routers-0000000abc --zone=us-east5-a --node-id=routers-0000000abc --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite

# router=top_k,seed=1
gcloud compute tpus queued-resources create routers-0000000def --zone=us-east5-a --node-id=routers-0000000def --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite

# When a slice is ACTIVE (gcloud compute tpus queued-resources list):
tools/launch/tpu_vm.sh setup routers-0000000abc --zone=us-east5-a
tools/launch/tpu_vm.sh start routers-0000000abc --zone=us-east5-a -- --config=configs/lm.py:size=base,moe=top_p '--config.note=$(x) '"'"'y'"'"'' --config.checkpoint.dir=gs://bucket/routers/router=top_p,seed=1-0000000abc --workdir=/tmp/moejax/router=top_p,seed=1-0000000abc
tools/launch/tpu_vm.sh setup routers-0000000def --zone=us-east5-a
tools/launch/tpu_vm.sh start routers-0000000def --zone=us-east5-a -- --config=configs/lm.py:size=base,moe=top_k '--config.note=$(x) '"'"'y'"'"'' --config.checkpoint.dir=gs://bucket/routers/router=top_k,seed=1-0000000def --workdir=/tmp/moejax/router=top_k,seed=1-0000000def

# When its run is over (tools/launch/tpu_vm.sh status NAME):
# gcloud compute tpus queued-resources delete routers-0000000abc --zone=us-east5-a --force --quiet
# gcloud compute tpus queued-resources delete routers-0000000def --zone=us-east5-a --force --quiet
