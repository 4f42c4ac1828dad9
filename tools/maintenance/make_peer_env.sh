#!/usr/bin/env bash
# Builds the environment in which benchmarks/peers.py runs one of the projects it compares with.
#
#   tools/maintenance/make_peer_env.sh garden|kerashub|torchvision [DIRECTORY]
#
# Without DIRECTORY it goes where peers.py looks. A finished environment is left as it is.
set -euo pipefail

peer=${1:-}
target=${2:-$HOME/.cache/spinenet_peers/$peer}
case $peer in
  garden) exec "$(dirname "$0")/make_oracle_env.sh" "$target" ;;
  kerashub) packages=(keras==3.15.* keras-hub==0.32.* jax==0.10.2) ;;
  torchvision) packages=(torch torchvision pycocotools) ;;
  *)
    echo "usage: tools/maintenance/make_peer_env.sh garden|kerashub|torchvision [DIRECTORY]" >&2
    exit 2
    ;;
esac
stamp=$target/.peer-ready
[[ -f $stamp ]] && exit 0
python3 -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
touch "$stamp"
