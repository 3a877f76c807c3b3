#!/bin/bash
# Runs the steps of a job in a guest, as the first process or as a service, and ends the guest. The output goes through a
# virtio port: the serial console is slow and holds the kernel's messages.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run/tmp
mkdir -p "$TMPDIR"
if (($$ == 1)); then
  ln -sf /proc/self/fd /dev/fd
  for name in 0:stdin 1:stdout 2:stderr; do
    ln -sf "/proc/self/fd/${name%:*}" "/dev/${name#*:}"
  done
  ip link set lo up
fi
for port in /sys/class/virtio-ports/*; do
  [[ $(<"$port/name") != job ]] || exec >"/dev/${port##*/}" 2>&1
done
# Debian's full version is in the second name of the kernel.
echo "@version $(uname -v | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1)"

step() {
  local name=$1
  shift
  echo "@begin $name"
  "$@" </dev/null
  # A program that a signal ended may have left half a line.
  printf '\n@end %s\n' $?
}
source /run/job/steps
echo "@done"
sync
echo o >/proc/sysrq-trigger
sleep infinity
