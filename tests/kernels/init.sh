#!/bin/busybox sh
# The first process of a guest kernel. Mounts the machine's files read-only below a tmpfs, then runs the job.
b=/bin/busybox
fail() {
  echo "init: $*"
  $b poweroff -f
}
share() { $b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose "$1" "$2" || fail "cannot mount $1"; }

$b mount -t proc proc /proc && $b mount -t sysfs sys /sys && $b mount -t devtmpfs dev /dev
while read -r module; do
  $b insmod "/modules/$module" || fail "cannot load $module"
done </modules/order
share machine /lower
$b mount -t tmpfs -o mode=755,size=90% upper /upper
$b mkdir /upper/upper /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work root /root || fail "cannot mount the root"

version=$($b uname -r)
share modules /kernel
$b mkdir -p "/root/lib/modules/$version" && $b mount -o bind "/kernel/$version" "/root/lib/modules/$version"
$b mount -t tmpfs -o mode=755,nosuid,nodev run /root/run
$b mkdir -p /root/run/lock /root/run/job /root/run/systemd/system
$b cp /job/* /root/run/job/ && $b cp /job/flanneld-test.* /root/run/systemd/system/
# Nothing of the machine's own is mounted, /tmp is not emptied, and packages may start their service.
: >/root/etc/fstab
$b mkdir -p /root/etc/tmpfiles.d && : >/root/etc/tmpfiles.d/tmp.conf
$b rm -f /root/usr/sbin/policy-rc.d
# The machine may be a container; the guest is none.
$b rm -f /root/.dockerenv

$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts && $b mount -t tmpfs shm /dev/shm
for mount in dev proc sys; do
  $b mount -o move "/$mount" "/root/$mount"
done
# The words of the kernel's command line that the kernel does not know are variables here.
if [ "$JOB" = service ]; then
  exec $b switch_root /root /sbin/init
fi
$b mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
$b hostname guest
exec $b switch_root /root /run/job/main
