#!/usr/bin/env bash
# An ARM64 Python with NumPy (and tokenizers), to be run by qemu-aarch64: what a board or a phone has.
#
#   tests/cpu/arm64/sysroot.sh     make it in $LUTRA_ARM64, or ~/.cache/lutra/arm64, where it is kept
#
# Needs qemu-aarch64 and debootstrap. They are installed with apt where CI=true and this is root; else
# a missing one is named, and nothing is done.
set -euo pipefail

release=bookworm python=3.11
folder=${LUTRA_ARM64:-${XDG_CACHE_HOME:-$HOME/.cache}/lutra/arm64}
if [ -f "$folder/complete" ]; then
    echo "$folder is there"
    exit
fi

missing=()
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
command -v debootstrap >/dev/null || missing+=(debootstrap)
as_root=()
if [ "$(id -u)" != 0 ]; then
    as_root=(fakeroot) # debootstrap asks for it, to fetch and unpack alone
    command -v fakeroot >/dev/null || missing+=(fakeroot)
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "${CI:-}" != true ] || [ "$(id -u)" != 0 ]; then
        echo "no ARM64 Python: needs ${missing[*]}; say: apt-get install ${missing[*]}"
        exit
    fi
    apt-get update -qq && apt-get install -y -qq "${missing[@]}" >/dev/null
fi

mkdir -p "$(dirname "$folder")"
work=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$work"' EXIT

"${as_root[@]}" debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 \
    "$release" "$work/root" >"$work/log" 2>&1 || {
    tail -5 "$work/log"
    exit 1
}
for package in "$work"/root/var/cache/apt/archives/*.deb; do
    dpkg -x "$package" "$work/root"
done
rm -rf "$work"/root/var/cache/apt "$work"/root/debootstrap

"${PYTHON:-python3}" -m pip install --quiet --target "$work/site" --only-binary=:all: --no-deps \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --python-version "$python" \
    numpy tokenizers
PYTHONPATH="$work/site" qemu-aarch64 -L "$work/root" "$work/root/usr/bin/python3" \
    -c 'import numpy, tokenizers'
chmod 755 "$work"
touch "$work/complete"
rm -f "$work/log"
mv "$work" "$folder"
trap - EXIT
echo "$folder made: $(du -sh "$folder" | cut -f1)"
