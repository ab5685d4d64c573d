#!/usr/bin/env bash
# The whole demo under the filters of the shipped units, without a denied call. Called by run.sh.
#
#   tests/systemd/demo.sh       needs what run.sh needs, and tracefs with the raw_syscalls events
#
# In a booted container the lab runs each meshd and each planet as a unit: the installed file and the
# drop-in of tests/lab/unit.rs. Two witnesses look for denied calls. A call that SystemCallFilter=
# forbids kills its program. All the other bars (address families, namespaces, capabilities, devices,
# read-only folders) answer with an error, which the kernel's tracer reports for every process that
# systemd has started. Programs that do what is forbidden show that both witnesses are awake.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD
work=$top/target/systemd
id=pmsu$$
containers=(demo)
writable=network # sysctls of the lab's namespaces
trace=$work/$id-trace
demo= # process id of what holds the lab
mkdir -p "$work"
. tests/systemd/container.sh

fail() {
  echo "FAIL: $*" >&2
  echo "--- the demo" >&2
  tail -25 "$work/$id.demo.log" >&2 2>/dev/null || true
  echo "--- journal of its units" >&2
  inside demo journalctl --no-pager -q -u 'pmlab-*' -n 40 >&2 2>/dev/null || true
  exit 1
}

start_trace() {
  local here=$trace/instances/$id
  mkdir "$trace"
  mount -t tracefs "$id" "$trace" && mkdir "$here" && [ -d "$here/events/raw_syscalls" ] ||
    fail "this kernel can't trace system calls (CONFIG_FTRACE_SYSCALLS); nobody would see a denied one"
  echo 1024 > "$here/buffer_size_kb"
  echo 1 > "$here/options/event-fork"
  leader demo > "$here/set_event_pid"
  # EPERM, EACCES, EROFS, EAFNOSUPPORT
  echo 'ret == -1 || ret == -13 || ret == -30 || ret == -97' > "$here/events/raw_syscalls/sys_exit/filter"
  for event in sched/sched_process_exec sched/sched_process_fork raw_syscalls/sys_exit; do
    echo 1 > "$here/events/$event/enable"
  done
}

end_trace() {
  mountpoint -q "$trace" || return 0
  rmdir "$trace/instances/$id"
  umount "$trace"
}

# A container that stops while nsenter still holds somebody in it would wait for ever: systemd stops all
# processes before it ends them, and nsenter then stops, too, and buries nobody.
end_demo() {
  local outer inner
  [ -n "$demo" ] || return 0
  outer=$(pgrep -P "$demo") && inner=$(pgrep -P "$outer") && kill "$inner" 2>/dev/null
  for _ in $(seq 100); do kill -0 "$demo" 2>/dev/null || return 0; sleep 0.1; done
  kill -KILL $inner $outer
}

down() {
  set +e
  end_demo
  tear_down
  end_trace
  [ ! -d "$trace" ] || rmdir "$trace"
}
trap 'down' EXIT
trap 'exit 130' INT TERM

units() { inside demo systemctl list-units -q --plain --no-legend --state=running 'pmlab-*' | cut -d' ' -f1; }

# Whatever the shipped file says of the service holds for the lab's unit, but for these.
moved='ExecStart|NetworkNamespacePath|StateDirectory|RuntimeDirectory|Restart|SystemCallErrorNumber'
same_sandbox() { # SHIPPED UNIT
  local asked
  asked=$(sed -n '/^\[Service\]/,/^\[Install\]/s/^\([A-Za-z]*\)=.*/\1/p' "packaging/systemd/$1.service" |
    sort -u | grep -vxE "$moved" | sed 's/^/--property=/')
  for u in "$1" "$2"; do inside demo systemctl show $asked "$u" | sort > "$work/$id.$u.properties"; done
  [ "$(wc -l < "$work/$id.$1.properties")" -gt 25 ] || fail "$1.service shows too few properties"
  diff "$work/$id.$1.properties" "$work/$id.$2.properties" >&2 || fail "$2 isn't what $1.service says"
}

probe() { # NAME UNIT COMMAND: runs a command in the sandbox of a unit of the lab
  local units=/run/systemd/system
  inside demo sh -c "cp $units/$2 $units/$1.service && cp -r $units/$2.d $units/$1.service.d"
  inside demo sh -c "cat > $units/$1.service.d/probe.conf" <<U
[Service]
Type=oneshot
ExecStart=
ExecStart=$3
StateDirectory=
RuntimeDirectory=
U
  inside demo systemctl daemon-reload
  inside demo systemctl start "$1" 2>/dev/null || true
}

echo "== image"
make_image
echo "== a machine for the demo"
make_tun
ip netns add "$id-demo"
boot demo
install_into demo
inside demo systemd-sysusers 2>/dev/null
lab=/usr/local/lib/lab
mkdir -p "$work/$id-demo$lab"
cp target/release/lab "$work/$id-demo$lab/"
for program in /usr/bin/{meshd,meshctl,planet} /opt/cni/bin/podmesh; do
  ln -s "$program" "$work/$id-demo$lab/"
done
start_trace

echo "== the demo"
inside demo env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/var/lib LAB_UNITS=1 PODMESH_BIN_DIR=$lab \
  "$lab/lab" demo > "$work/$id.demo.log" 2>&1 &
demo=$!
end=$((SECONDS + 60))
until [ "$(units | wc -l)" = 5 ]; do
  kill -0 $demo 2>/dev/null || fail "the demo ended early"
  [ $SECONDS -lt $end ] || fail "not all units run: $(units | tr '\n' ' ')"
  sleep 0.2
done
meshd=$(units | grep -e '-home-1\.service$')
planet=$(units | grep -e '-planet-1\.service$')
for u in $(units); do
  shipped=meshd; [ "$u" != "$planet" ] || shipped=planet
  same_sandbox "$shipped" "$u"
done
echo "ok: 5 units run in the sandboxes of the shipped files"
score() { inside demo systemd-analyze security --no-pager "$1" | sed -n 's/.*level for .*: \([0-9.]*\).*/\1/p'; }
echo "figure systemd-analyze security in the demo: meshd $(score "$meshd"), planet $(score "$planet")"

for shipped in meshd planet; do
  probe "probe-chroot-$shipped" "${!shipped}" "/usr/sbin/chroot /usr /bin/true"
  said=$(inside demo systemctl show --property=ExecMainStatus --value "probe-chroot-$shipped")
  [ "$said" = 31 ] || fail "a forbidden call under $shipped's filter ended with $said, not with SYS"
  echo "ok: a program that calls chroot(2) under $shipped's filter dies of SYS"
done
probe probe-namespace "$meshd" "/usr/bin/unshare --user /bin/true"
probe probe-netlink "$planet" "/usr/bin/ss --tcp"

good=yes
wait $demo || good=no
demo=
sed -n '/^What was promised/,/—/p' "$work/$id.demo.log"
[ $good = yes ] || fail "the demo does not hold under the units' filters"
echo "figure demo under the units' filters: $(sed -n 's/^ *PASS — //p' "$work/$id.demo.log")"

echo "== denied calls"
inside demo journalctl --no-pager -q -b -u 'pmlab-*' > "$work/$id.journal"
ends=$(grep -c 'Main process exited' "$work/$id.journal" || true)
killed=$(grep -c 'Main process exited, code=killed, status=9/KILL' "$work/$id.journal" || true)
[ "$ends" = 6 ] && [ "$killed" = 6 ] ||
  fail "6 programs end, each killed by the lab; seen: $(grep 'Main process exited' "$work/$id.journal")"
told=$(grep -iE 'operation not permitted|permission denied|read-only file system' "$work/$id.journal" || true)
[ -z "$told" ] || fail "the units' journals speak of denied calls: $told"
stop_container demo
python3 tests/systemd/denied.py "$trace/instances/$id" || fail "calls were denied, or nobody looked"
echo "PASS: systemd"
