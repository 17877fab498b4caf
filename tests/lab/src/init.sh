#!/bin/busybox sh
# PID 1 of the lab until its agent takes over: loads the modules (in the order
# in which they need each other), makes the host's root directory the root, and
# lays over it what has to be the lab's own.
export PATH=/bin
/bin/busybox --install -s /bin
# PID 1 ending is a kernel panic, which the host reports with these last words.
fail() { echo "lab: cannot mount $1"; exit 1; }
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
load() { while read -r module; do insmod "/modules/$module" || echo "lab: cannot load $module"; done <"$1"; }
load /modules/first
# KVM alone takes a second: beside the mounts, on the other CPU.
load /modules/second &

# The host's files, at the paths they have on the host.
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000 root /root || fail "the root directory"
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm /root/dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
mount -t mqueue mqueue /root/dev/mqueue
ln -sf /proc/self/fd /root/dev/fd
ln -sf /proc/self/fd/0 /root/dev/stdin
ln -sf /proc/self/fd/1 /root/dev/stdout
ln -sf /proc/self/fd/2 /root/dev/stderr

# 9p has no FIFOs, sockets or extended attributes: /run is the lab's, and the
# directories that programs keep state in are on a disk. Only the cache stays
# from one run to the next.
mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/lock /root/run/lab
mount -t ext4 -o noatime,discard /dev/vda /root/run/lab || fail "the scratch disk"
cd /root/run/lab && rm -rf state run tmp && mkdir -p cache state run tmp && chmod 1777 tmp && chmod 700 run
cd /
ip link set lo up
wait
echo 1 >/proc/sys/net/ipv4/ip_forward
chmod 666 /dev/kvm

cp /agent /root/run/lab-agent
# Not chroot: programs in a changed root may make no user namespaces.
exec switch_root /root /run/lab-agent lab-agent
