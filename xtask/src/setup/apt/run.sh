# Runs as root: samport-setup LOG UNITS apt-get's arguments...
# Prints apt's status lines; all else goes to LOG. Services that packages bring are not started (invoke-rc.d asks
# policy-rc.d), and UNITS are disabled.
set -u
log=$1 units=$2
shift 2
policy=/usr/sbin/policy-rc.d
mark="made by samport's cargo xtask setup"
# Left by a setup that was killed.
if grep -qs "$mark" $policy; then rm -f $policy; fi
if [ ! -e $policy ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    # Without the process that made it, it forbids nothing.
    cat >$policy <<POLICY
#!/bin/sh
# $mark; may be removed
grep -aqs samport-setup /proc/$$/cmdline && exit 101
exit 0
POLICY
    chmod 755 $policy
fi
LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet -o APT::Status-Fd=3 -o Dpkg::Use-Pty=0 \
    -o DPkg::Lock::Timeout=60 "$@" 3>&1 >"$log" 2>&1 || exit $?
# Neither with systemd nor without it is any of them to start at the next boot.
for unit in $units; do
    if command -v systemctl >/dev/null; then systemctl disable --quiet "$unit" >>"$log" 2>&1 || :; fi
    find /etc/systemd/system -path "*.wants/$unit" -type l -delete >>"$log" 2>&1 || :
    script=${unit%.service}
    if [ -e "/etc/init.d/$script" ]; then update-rc.d "$script" disable >>"$log" 2>&1 || :; fi
done
