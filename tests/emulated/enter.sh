#!/bin/bash
# The inside of entering.py: make the root of an emulated board of this namespace, and run a command in it.
#
#   enter.sh ROOT REGISTRATION LOOKS BINDINGS COMMAND...
#     REGISTRATION  binfmt file to register in this user namespace alone, or empty where the host has it
#     LOOKS         folder of Board.write_looks, or empty
#     BINDINGS      lines of SOURCE<tab>TARGET
set -euo pipefail
root=$1 registration=$2 looks=$3 bindings=$4
shift 4

mount --bind "$root" "$root"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
if [ -n "$registration" ]; then
  mkdir "$root/dev/.binfmt_misc"
  mount -t binfmt_misc none "$root/dev/.binfmt_misc"
  tr -d '\n' < "$registration" > "$root/dev/.binfmt_misc/register"
fi
for device in null zero full random urandom tty; do
  : > "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
if [ -n "$looks" ]; then
  mount --bind "$looks/cpuinfo" "$root/proc/cpuinfo"
  if [ -d "$root/sys/firmware" ]; then
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/firmware"
    mkdir -p "$root/sys/firmware/devicetree/base"
    cp "$looks/model" "$root/sys/firmware/devicetree/base/model"
  fi
  [ ! -d "$root/sys/class/thermal" ] || mount --bind "$looks/thermal" "$root/sys/class/thermal"
fi
while IFS=$'\t' read -r source target; do
  [ -n "$source" ] || continue
  if [ -d "$source" ]; then mkdir -p "$root$target"; else mkdir -p "$(dirname "$root$target")"; touch "$root$target"; fi
  mount --rbind "$source" "$root$target"
done <<< "$bindings"

cd "$root"
exec chroot . /usr/bin/env -C /root "$@"
