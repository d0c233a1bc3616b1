#!/usr/bin/env bash
# Builds the source distribution and, from it, a repaired wheel: wheel.sh VENV OUT.
#
# What is committed is built, nothing else. The compiler is clang as PyPI's `ziglang` brings it, told to use no
# symbol of glibc that is younger than 2.28 (2018): the wheel runs where torch's own does, whatever this machine has.
# Two builds of one commit give the same bytes: times are the commit's, and no path gets into the files.
set -euo pipefail
umask 022
glibc=2.28

venv=$(realpath "$1") out=$(realpath -m "$2")
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export PATH="$venv/bin:$PATH"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) && export SOURCE_DATE_EPOCH
git diff --quiet HEAD || echo "note: changes that are not committed are not in the wheel" >&2

# -idirafter: libseccomp's and a Debian Python's headers come from the system, after the C library's own.
cat >"$work/cc" <<SH
#!/bin/sh
exec "$venv/bin/python" -m ziglang cc -target $(uname -m)-linux-gnu.$glibc -idirafter /usr/include \\
  -L"$(pkg-config --variable=libdir libseccomp)" "\$@"
SH
chmod +x "$work/cc"
export CC="$work/cc" CFLAGS="-g0" LDFLAGS="-Wl,-s"

rm -rf "$out" && mkdir -p "$out"
python -m build --no-isolation --outdir "$work/built" . >"$work/log" 2>&1 || { tail -50 "$work/log" >&2; exit 1; }
scripts/repair-wheel.sh "$work"/built/*.whl "$out"
mv "$work"/built/*.tar.gz "$out"
(cd "$out" && sha256sum -- *)
