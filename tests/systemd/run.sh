#!/usr/bin/env bash
# podmesh under a real systemd: two booted Debian containers on one link, installed by `make install`.
#
#   tests/systemd/run.sh        needs root, target/release built, and a Debian mirror for the image
#
# Container one runs the planet and a node as units that joins by command, container two a node that
# joins by a credential file. Then: the peer is direct; the units restart; the containers reboot;
# nothing has changed. The units' sandboxes are scored. At the end demo.sh plays the whole demo in them.
# Everything is made under target/systemd and removed again, but for the image, which is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD
work=$top/target/systemd
id=pmsd$$
mkdir -p "$work"
. tests/systemd/mesh.sh

two_machines
names=(one two)
check_all() { # TITLE
  expect 30 "$1: one sees two directly" peer_is_direct one "$id-two"
  expect 30 "$1: two sees one directly" peer_is_direct two "$id-one"
  expect 10 "$1: ping through the mesh" inside two meshctl ping "$id-one" -c 1
  inside one ip -j address show mesh0 > "$work/$id.one.now"
  inside two ip -j address show mesh0 > "$work/$id.two.now"
}
addresses() { python3 -c '
import json, sys
print(sorted(a["local"] for a in json.load(open(sys.argv[1]))[0]["addr_info"] if a["scope"] == "global"))' "$1"; }

check_all "joined by command and by credential"
for c in "${names[@]}"; do addresses "$work/$id.$c.now" > "$work/$id.$c.first"; done
same_addresses() {
  for c in "${names[@]}"; do
    [ "$(addresses "$work/$id.$c.now")" = "$(cat "$work/$id.$c.first")" ] || fail "$1: addresses of $c changed"
  done
  echo "ok: $1: addresses are as before"
}

# The service manager keeps the interface and the sockets open: what arrives meanwhile waits in them.
gap_over_a_restart() { # CONTAINER
  local log=$work/$id.$1.pings address
  address=$(mesh_address two)
  inside one ping -D -i 0.005 -w 5 "$address" > "$log" &
  local pings=$!
  sleep 1.5
  inside "$1" systemctl restart meshd
  wait $pings || fail "nothing answers any more after meshd restarted in $1"
  python3 - "$log" "$1" << 'PY' || fail "meshd restarted in $1: the gap is over 250 ms"
import re, sys
heard = [float(at) for at in re.findall(r"^\[([0-9.]+)\].*icmp_seq", open(sys.argv[1]).read(), re.M)]
gap = max(after - before for before, after in zip(heard, heard[1:]))
print(f"figure systemctl restart meshd in {sys.argv[2]}: {gap * 1000:.0f} ms without a ping (bound 250)")
sys.exit(not gap <= 0.25)
PY
}
index_of() { inside "$1" ip -o link show mesh0 | cut -d: -f1; }
kept_descriptors() { inside "$1" systemctl show -p NFileDescriptorStore --value meshd; }
for c in "${names[@]}"; do
  [ "$(kept_descriptors $c)" -ge 3 ] || fail "the service manager keeps $(kept_descriptors $c) descriptors of $c"
  index=$(index_of $c)
  for _ in 1 2 3; do gap_over_a_restart $c; done
  [ "$(index_of $c)" = "$index" ] || fail "mesh0 of $c was made anew"
done
inside one systemctl restart planet meshd
inside two systemctl restart meshd
check_all "units restarted"
same_addresses "units restarted"

nothing_denied() {
  local told
  for c in "${names[@]}"; do
    told=$(inside $c journalctl --no-pager -q -u meshd -u planet |
      grep -iE 'operation not permitted|permission denied|status=31/SYS' || true)
    [ -z "$told" ] || fail "$1: the journal of $c speaks of denied calls: $told"
  done
  echo "ok: $1: no denied call in the units' journals"
}

nothing_denied "before the reboot"
for c in "${names[@]}"; do reboot_container $c; done
check_all "machines rebooted"
same_addresses "machines rebooted"

inside two sh -c 'kill -KILL "$(systemctl show -p MainPID --value meshd)"'
check_all "meshd killed"

echo "== sandbox"
for u in meshd planet; do
  score=$(inside one systemd-analyze security --no-pager "$u.service" | sed -n 's/.*level for .*: \([0-9.]*\).*/\1/p')
  limit=2.5; [ "$u" = planet ] && limit=1.5
  python3 -c "import sys; sys.exit(not float('$score') <= $limit)" || fail "$u.service scores $score, over $limit"
  echo "figure systemd-analyze security $u: $score (limit $limit)"
done
nothing_denied "after the reboot"
tear_down
exec tests/systemd/demo.sh
