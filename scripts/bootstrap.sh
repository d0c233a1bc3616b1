#!/usr/bin/env bash
# Makes the virtual environment and builds the package into it: bootstrap.sh PYTHON VENV.
# Installs Debian packages where they are missing and may be installed, else says which to install.
set -euo pipefail

python=$1 venv=$2

packages=()
command -v gcc >/dev/null || packages+=(gcc libc6-dev)
[ -e /usr/include/seccomp.h ] || packages+=(libseccomp-dev)
command -v pkg-config >/dev/null || packages+=(pkg-config)
"$python" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
"$python" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  packages+=(python3-dev)
if [ "$(uname)" = Linux ] && [ ${#packages[@]} -gt 0 ]; then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "installing ${packages[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
  else
    echo "please install: ${packages[*]}   (sudo apt-get install ${packages[*]})" >&2
    exit 1
  fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check -q)

mapfile -t build < <("$venv/bin/python" - <<'PY'
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
print(*project["build-system"]["requires"], "meson>=1.4", "ninja>=1.11", *project["project"]["dependencies"],
      *project["project"]["optional-dependencies"]["test"], sep="\n")
PY
)
if [ ! -e "$venv/.tools" ] || [ pyproject.toml -nt "$venv/.tools" ] || [ constraints.txt -nt "$venv/.tools" ]; then
  echo "installing the build's tools and torch (once; it takes a few minutes)"
  "${pip[@]}" install --upgrade pip
  "${pip[@]}" install -c constraints.txt "${build[@]}"
  "${pip[@]}" install -c constraints.txt --no-deps k-diffusion
  touch "$venv/.tools"
fi

echo "building vortex-worker"
# The build calls cython, meson, ninja and cffi-gen-src by name. Not an editable install: that would
# call ninja at every import, in each worker too.
PATH="$PWD/$venv/bin:$PATH" "${pip[@]}" install --no-build-isolation --no-deps --force-reinstall -Cbuilddir=build .

# `python -m vortex_worker…`, run from here, imports the source tree: give it the built parts.
site=$("$venv/bin/python" -P -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
cp "$site"/vortex_worker/_core/*.so vortex_worker/_core/
cp "$site"/vortex_worker/ipc/control_pb2.py* vortex_worker/ipc/
cp "$site"/vortex_worker/bench/pingpong vortex_worker/bench/
