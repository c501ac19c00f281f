#!/bin/sh
# Everything that a GPU is to be measured for, in some minutes: our step through WebGPU beside PyTorch's on the same card, a
# token position while sampling, and matrix products. It needs Node and `npm ci`; and for PyTorch's part an NVIDIA card, and a
# Python (`PYTHON` names another python3) with torch and numpy.
#
#   sh bench/gpu.sh | tee gpu.txt
set -e
cd "$(dirname "$0")/.."
models=$(mktemp -d)
trap 'rm -rf "$models"' EXIT
node --import tsx bench/random_model.ts SmolLM2-135M "$models/SmolLM2-135M"

peer='--peer --device cuda'
if ! "${PYTHON:-python3}" -c 'import numpy, torch; assert torch.cuda.is_available()' 2>/dev/null; then
  echo 'without PyTorch beside it: there is none that finds a CUDA device'
  peer=
fi

small='--prompts 4 --group 4 --prompt-len 32 --new-tokens 32 --minibatch 16'
large='--prompts 16 --group 8 --prompt-len 64 --new-tokens 64 --minibatch 64'
for model in models/tiny "$models/SmolLM2-135M"; do
  for size in "$small" "$large"; do
    echo
    echo "== $(basename "$model") $size"
    # shellcheck disable=SC2086 # these are several words
    node --import tsx bench/bench.ts "$model" $size --backend webgpu --repeats 2 $peer
  done
  echo
  echo "== $(basename "$model"): a position of 16 rows, and of 128, then the parts of a step"
  for size in "$small" "$large"; do
    # shellcheck disable=SC2086
    node --import tsx bench/webgpu_calls.ts "$model" $size --gpu 0
  done
done
echo
echo '== products'
node --import tsx bench/webgpu_products.ts
