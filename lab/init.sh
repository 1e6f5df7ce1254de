#!/bin/busybox sh
# First process of the lab guest: load the drivers, put a writable layer over the read-only root
# disk, lay the project on it, and hand over to the agent. Any failure powers the guest off, and
# the host shows the console's last lines.
b=/bin/busybox
fail() { echo "lab-init: $1"; $b poweroff -f; }
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    $b insmod "$module" || fail "cannot load $module"
done
tries=0
while [ ! -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || fail "the root disk did not appear"
    $b usleep 20000
done
$b mount -t ext4 -o ro,noload /dev/vda /lower || fail "cannot mount the root disk"
$b mount -t tmpfs -o size=60% tmpfs /upper
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /newroot ||
    fail "cannot lay the writable layer"
$b mkdir -p /newroot/opt
$b cp -a /project /newroot/opt/aerostat
if [ -d /programs ]; then
    $b mkdir -p /newroot/root/.cache/aerostat
    $b cp -a /programs /newroot/root/.cache/aerostat/programs
fi
for place in proc sys dev; do
    $b mount --move /$place /newroot/$place
done
$b mount -t debugfs debugfs /newroot/sys/kernel/debug
$b mount -t tracefs tracefs /newroot/sys/kernel/tracing
$b mount -t bpf bpf /newroot/sys/fs/bpf
# No file system of its own over /tmp: the environment that was copied may lie below it.
$b chmod 1777 /newroot/tmp
exec $b switch_root /newroot /usr/lib/aerostat/start
