#!/bin/busybox sh
# The first process of the machine the tests run in. What it says goes out by the second serial port;
# lines that begin with "vm: " are for xtask/src/vm/report.rs.

/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /run/netns /dev/pts
mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1

say() { echo "vm: $*"; }

# What a run may leave behind.
look() {
    for kind in prog map link; do
        bpftool $kind show | sed -n "s/^\([0-9]*: [a-z_]*\).*/$kind \1/p"
    done
    find /sys/fs/bpf /run/netns /run/samport -mindepth 1 2>/dev/null
    ip -o link show | cut -d: -f2
    tc qdisc show
}

say "kernel $(uname -r)"
while read -r module; do
    insmod "/modules/$module" || say "no module $module"
done </modules/order
ip link set lo up
ulimit -n 20000
export SAMPORT_BIN=/usr/bin/samport SAMPORT_REQUIRE_ROOT=1
look >/tmp/before

while read -r program arguments; do
    # Several words.
    # shellcheck disable=SC2086
    $program $arguments || say "failed $program"
done </script

# The kernel frees things a moment after their last user has gone.
sleep 5
look >/tmp/after
grep -vxFf /tmp/before /tmp/after | sed 's/^/vm: left /'
say "end"
sync
sleep 1
poweroff -f
