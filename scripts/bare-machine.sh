#!/usr/bin/env bash
# Tries the wheel in DIST on a bare machine: bare-machine.sh DIST CACHE. Needs root, for chroot.
#
# The machine is a Debian 12 of nothing but the base system and Python, made by debootstrap in CACHE: no compiler, no
# libseccomp, no source tree, and not root. One `pip install` with all dependencies from a folder, and no network from then on.
set -euo pipefail

dist=$(realpath "$1") cache=$(realpath -m "$2") python=/usr/bin/python3
[ "$(id -u)" = 0 ] || { echo "a bare machine is a chroot, which needs root: run this part as root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "please install: debootstrap" >&2; exit 1; }
root=$cache/root wheels=$cache/wheels
mkdir -p "$cache"
if [ ! -e "$cache/.complete" ]; then
  echo "making a bare Debian in $root (once)"
  rm -rf "$root"
  debootstrap --variant=minbase --include=python3,python3-venv bookworm "$root" >"$cache/debootstrap.log"
  rm "$root"/usr/lib/*/libseccomp.so* # apt brings it along
  touch "$cache/.complete"
fi

echo "collecting what the wheel depends on"
mkdir -p "$wheels" && rm -f "$wheels"/vortex_worker-*
.venv/bin/python -m pip --disable-pip-version-check -q download --only-binary :all: --python-version 3.11 \
  -c constraints.txt -d "$wheels" "$dist"/vortex_worker-*-cp311-*.whl

for missing in gcc cc clang pkg-config ld; do
  ! chroot "$root" sh -c "command -v $missing" >/dev/null || { echo "the bare machine has $missing" >&2; exit 1; }
done
[ -z "$(find "$root" -name 'libseccomp*.so*' -print -quit)" ] || { echo "it has libseccomp" >&2; exit 1; }

# A mount and a network namespace of our own: the mounts end with it, and nothing can be fetched.
exec unshare --mount --net --pid --fork --kill-child bash -euo pipefail -s "$root" "$wheels" "$python" <<'SH'
root=$1 wheels=$2 python=$3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root/wheels" && mount --bind -o ro "$wheels" "$root/wheels"
cd "$root"
exec chroot --userspec=1000:1000 "$root" env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/tmp TMPDIR=/tmp bash -euo pipefail -c "
cd /tmp
say() { printf '\n== %s\n' \"\$*\"; \"\$@\"; }
$python -m venv machine && PATH=/tmp/machine/bin:\$PATH
say pip -q install --no-index --find-links /wheels vortex-worker
say python -c 'import vortex_worker; print(vortex_worker.__version__, vortex_worker.__file__)'
say vortex-worker doctor
say vortex-worker run digits -o out
test -s out/digits_00001.png
say vortex-worker top --once --interval 0.1
say vortex-worker bench --quick --only map.tensor,job.roundtrip,start.warm,sandbox.install
"
SH
