#!/usr/bin/env bash
# Puts libseccomp and its licence into a wheel, and names the oldest glibc it runs on: repair-wheel.sh WHEEL OUT.
# Needs auditwheel, patchelf and wheel. Also what cibuildwheel calls.
set -euo pipefail
umask 022

wheel=$1 out=$2
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT

licences=(/usr/share/licenses/libseccomp/LICENSE /usr/share/common-licenses/LGPL-2.1) # AlmaLinux's, Debian's
for text in "${licences[@]}" ""; do
  [ -z "$text" ] && echo "no licence of libseccomp: looked for ${licences[*]}" >&2 && exit 1
  [ -e "$text" ] && break
done

wheel unpack --dest "$work" "$wheel" >/dev/null
info=$(echo "$work"/*/*.dist-info)
{
  echo "This wheel contains libseccomp $(pkg-config --modversion libseccomp), unchanged, as a shared library of its own in"
  echo "vortex_worker.libs: yours to replace. Its source: https://github.com/seccomp/libseccomp. Its licence:"
  echo
  cat "$text"
} >"$info/licenses/libseccomp.LICENSE"
sed -i '0,/^License-File: .*/s//&\nLicense-File: libseccomp.LICENSE/' "$info/METADATA"
grep -q '^License-File: libseccomp.LICENSE$' "$info/METADATA"
wheel pack --dest-dir "$work" "$(dirname "$info")" >/dev/null
mkdir -p "$out"
auditwheel repair --wheel-dir "$out" "$work"/*.whl
