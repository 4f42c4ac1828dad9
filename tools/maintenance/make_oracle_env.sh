#!/usr/bin/env bash
# Builds the oracle: an environment of its own with TensorFlow and the TF2 Model Garden.
#
#   tools/maintenance/make_oracle_env.sh DIRECTORY
#
# tools/maintenance/make_goldens.py and the tests marked `tf` run in it; training, evaluation and
# prediction never do. A finished environment is left as it is, so the call is cheap to
# repeat. Run its python with TF_USE_LEGACY_KERAS=1.
set -euo pipefail

if [[ $# -ne 1 || $1 == -* ]]; then
  echo "usage: tools/maintenance/make_oracle_env.sh DIRECTORY" >&2
  exit 2
fi
target=$1
stamp=$target/.oracle-ready
recipe=1  # raise it when the list below changes

if [[ -f $stamp && $(<"$stamp") == "$recipe" ]]; then
  exit 0
fi

python3 -m venv "$target"
pip=("$target/bin/python" -m pip install --quiet --disable-pip-version-check)
# The Garden asks for packages that its detection code never imports (and for the full
# TensorFlow), so it comes without its dependencies and they are named here.
"${pip[@]}" "tensorflow-cpu==2.20.*" "tf-keras==2.20.*" gin-config pyyaml pandas immutabledict \
  tf_slim tensorflow-hub tensorflow-datasets pycocotools opencv-python-headless Pillow scipy \
  matplotlib psutil py-cpuinfo tensorflow-model-optimization
"${pip[@]}" --no-deps "tf-models-official==2.20.*"
TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=2 "$target/bin/python" -c \
  "from official.vision.modeling.backbones import spinenet"
echo "$recipe" >"$stamp"
