#!/usr/bin/env bash
# Write app.txt and develop.txt anew: the pins of cpu.txt with the sha256 of every file of each release. Needs uv.
# torch and what only its CUDA builds need are left out: their files differ between package indexes.
set -euo pipefail
cd "$(dirname "$0")/.."
differing=(torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc
  nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse
  nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx)
compile() {
  echo setuptools | uv pip compile pyproject.toml - --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    -c constraints/cpu.txt "${differing[@]/#/--no-emit-package=}" "$@" >/dev/null
}
compile --extra all --extra dev -o constraints/develop.txt
compile --extra cloud --extra mcp --extra oidc --extra openvino --extra postgres --extra s3 --extra slack --extra teams --extra telemetry --extra thermal --extra train -o constraints/app.txt
