# The first process of a pristine machine. It runs in mount, pid, ipc and uts namespaces of its own and moves into
# the root file system, then runs the command.
#
#   inside.sh ROOT [bind FROM PLACE | bind-read-only FROM PLACE | read-only PLACE EXCEPT | loopback]… -- FOLDER CMD ARG…
set -euo pipefail
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
root=$1
shift
# pivot_root takes only a mount, not a folder.
mount --bind "$root" "$root"
cd "$root"

mount -t proc proc proc
mount -t sysfs sysfs sys
# The control groups are the machine's. bpffs stays unmounted: mounting it is a part of setup.
mount --rbind /sys/fs/cgroup sys/fs/cgroup

mount -t tmpfs -o mode=755 tmpfs dev
mkdir -p dev/net dev/pts dev/shm
for node in null zero full random urandom tty kmsg fuse kvm loop-control net/tun; do
    if [[ -e /dev/$node ]]; then
        touch "dev/$node"
        mount --bind "/dev/$node" "dev/$node"
    fi
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/lock

bind() { # FROM PLACE
    if [[ -d $1 ]]; then
        mkdir -p ".$2"
    else
        mkdir -p ".${2%/*}"
        touch ".$2"
    fi
    mount --bind "$1" ".$2"
}
while [[ $1 != -- ]]; do
    case $1 in
        bind) bind "$2" "$3"; shift 3 ;;
        bind-read-only) bind "$2" "$3"; mount -o remount,bind,ro ".$3"; shift 3 ;;
        read-only)
            # A mount of its own stays writable below one that is not.
            mount --rbind ".$3" ".$3"
            mount --rbind ".$2" ".$2"
            mount -o remount,bind,ro ".$2"
            shift 3 ;;
        loopback) ip link set lo up; shift ;;
        *) echo "inside.sh: unknown instruction $1" >&2; exit 2 ;;
    esac
done
shift

mkdir .old
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
echo pristine >/proc/sys/kernel/hostname
cd "$1"
shift
# Not exec: bash, as the first process of its pid namespace, reaps orphans, and signals do to the command what they
# usually do, which they would not do to a first process. Without a trap, bash ends a command's Ctrl-C by the same signal
# to itself, which has no effect on a first process: bash would stay.
trap : INT
status=0
"$@" || status=$?
exit "$status"
