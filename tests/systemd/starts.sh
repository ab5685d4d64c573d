#!/usr/bin/env bash
# What keeps a unit from starting for a minute never keeps it out for good: ten such faults of meshd and ten of
# the planet, in two booted containers with the shipped units, each for SECONDS (60 if absent), one of each at
# a time. Each fault is there before the unit starts. Back is, from the moment at which the fault is gone: a
# ping between the two nodes; an answer of the planet. When a node is connected to it again is told, too.
#
#   tests/systemd/starts.sh [SECONDS]      needs what run.sh needs
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD
work=$top/target/systemd
id=pmss$$
seconds=${1:-60}
within=2.0
mkdir -p "$work"
. tests/systemd/mesh.sh

two_machines
one=$work/$id-one two=$work/$id-two
address=$(mesh_address two)
meshd_config=$two/etc/podmesh/meshd.toml planet_config=$one/etc/podmesh/planet.toml
port=45077

# Each fault is a pair of functions, NAME_begin and NAME_end, that know nothing of the unit's state.
held= # what holds a port or a lock, per line of faults (each runs in a shell of its own)
hold() { # NAMESPACE PYTHON
  rm -f "$work/$id.$1.held"
  ip netns exec "$1" python3 -c "$2"'; import time; print("held", flush=True); time.sleep(600)' > "$work/$id.$1.held" &
  held=$!
  until grep -qs held "$work/$id.$1.held"; do kill -0 $held || return 1; sleep 0.05; done
}
let_go() { kill $held; wait $held 2>/dev/null || true; }
lock='import fcntl, sys; f = open("%s", "r+b"); fcntl.flock(f, fcntl.LOCK_EX)'
bind='import socket; s = socket.socket(socket.%s, socket.SOCK_DGRAM); s.bind(("%s", %d))'
dying='#!/bin/sh
kill -SEGV $$
'
put_in_place_of() { # FILE CONTENT
  mv "$1" "$1.away"
  printf '%s' "$2" > "$1"
  chmod 0755 "$1"
}
# In one step: a unit that starts between two would make a folder of its own.
put_back() {
  python3 -c 'import ctypes, os, sys
away, place = (os.fsencode(name) for name in sys.argv[1:])
libc, here, exchange = ctypes.CDLL(None, use_errno=True), -100, 2
sys.exit(libc.renameat2(here, away, here, place, exchange) and os.strerror(ctypes.get_errno()))' "$1.away" "$1"
  rm -rf "$1.away"
}

node_config_begin() { echo 'mtu = "much"' >> "$meshd_config"; }
node_config_end() { sed -i '$d' "$meshd_config"; }
node_port_begin() { hold "$id-two" "$(printf "$bind" AF_INET6 :: $port)"; }
node_port_end() { let_go; }
node_tun_begin() { inside two mount --bind /dev/null /dev/net/tun; }
node_tun_end() { inside two umount /dev/net/tun; }
node_lock_begin() { hold "$id-two" "$(printf "$lock" "$two/var/lib/podmesh/lock")"; }
node_lock_end() { let_go; }
node_state_folder_begin() { put_in_place_of "$two/var/lib/podmesh" ''; }
node_state_folder_end() { put_back "$two/var/lib/podmesh"; }
node_state_mode_begin() { chmod 0000 "$two"/var/lib/podmesh/{identity,identity.previous}; }
node_state_mode_end() { chmod 0600 "$two"/var/lib/podmesh/{identity,identity.previous}; }
node_runtime_folder_begin() { inside two sh -c 'rm -rf /run/podmesh; : > /run/podmesh'; }
node_runtime_folder_end() { inside two rm /run/podmesh; }
node_program_gone_begin() { mv "$two/usr/bin/meshd" "$two/usr/bin/meshd.away"; }
node_program_gone_end() { mv "$two/usr/bin/meshd.away" "$two/usr/bin/meshd"; }
node_program_dies_begin() { put_in_place_of "$two/usr/bin/meshd" "$dying"; }
node_program_dies_end() { put_back "$two/usr/bin/meshd"; }
node_config_mode_begin() { chmod 0000 "$meshd_config"; }
node_config_mode_end() { chmod 0644 "$meshd_config"; }

planet_config_begin() { echo 'max-connections = "many"' >> "$planet_config"; }
planet_config_end() { sed -i '$d' "$planet_config"; }
planet_port_begin() { hold "$id-one" "$(printf "$bind" AF_INET 10.99.0.7 7077)"; }
planet_port_end() { let_go; }
planet_address_begin() { inside one ip address del 10.99.0.7/24 dev up0; }
planet_address_end() { inside one ip address add 10.99.0.7/24 dev up0; }
planet_lock_begin() { hold "$id-one" "$(printf "$lock" "$one/var/lib/podmesh-planet/planet.redb")"; }
planet_lock_end() { let_go; }
planet_state_folder_begin() { put_in_place_of "$one/var/lib/podmesh-planet" ''; }
planet_state_folder_end() { put_back "$one/var/lib/podmesh-planet"; }
planet_state_mode_begin() { chmod 0000 "$one/var/lib/podmesh-planet/planet.redb"; }
planet_state_mode_end() { chmod 0600 "$one/var/lib/podmesh-planet/planet.redb"; }
planet_user_begin() { sed -i.away '/^podmesh-planet:/d' "$one/etc/passwd"; }
planet_user_end() { mv "$one/etc/passwd.away" "$one/etc/passwd"; }
planet_program_gone_begin() { mv "$one/usr/bin/planet" "$one/usr/bin/planet.away"; }
planet_program_gone_end() { mv "$one/usr/bin/planet.away" "$one/usr/bin/planet"; }
planet_program_dies_begin() { put_in_place_of "$one/usr/bin/planet" "$dying"; }
planet_program_dies_end() { put_back "$one/usr/bin/planet"; }
planet_config_mode_begin() { chmod 0000 "$planet_config"; }
planet_config_mode_end() { chmod 0644 "$planet_config"; }

# One ping goes on throughout, since a new one for each look takes longer on a busy machine than the node does.
pings=$work/$id.pings
node_watched() {
  inside one sh -c 'echo $$ > /run/pings; exec stdbuf -oL ping -n -D -i 0.05 "$0"' "$address" > "$pings" 2>&1 &
  until grep -qs PING "$pings"; do sleep 0.05; done
  sleep 0.2
}
node_unwatched() { inside one sh -c 'kill $(cat /run/pings)'; rm "$pings"; }
node_is_back() { grep -q 'bytes from' "$pings"; }
node_took() { # SINCE
  grep -m1 'bytes from' "$pings" | sed 's/^\[\([0-9.]*\)\].*/\1/' | python3 -c "print('%.2f' % (float(input()) - $1))"
}
planet_watched() { :; }
planet_unwatched() { :; }
planet_is_back() { inside one planet status --json; }
planet_took() { python3 -c "import time; print('%.2f' % (time.time() - $1))"; }
# The nodes come at their own pace: so many that find a planet gone don't all come at once.
node_is_connected() {
  inside one meshctl status --json | python3 -c '
import json, sys
assert all(p["connected"] for p in json.load(sys.stdin)["planets"])'
}

now() { date +%s.%N; }
since() { python3 -c "import time; print(int(time.time() - $1))"; }
play() { # CONTAINER UNIT LINE FAULT
  local begin out
  inside "$1" systemctl stop "$2"
  "$3_$4_begin" || fail "$2, $4: the fault can't be made"
  inside "$1" systemctl start --no-block "$2"
  sleep "$seconds"
  "$3_watched"
  if "$3_is_back" >/dev/null 2>&1; then fail "$2, $4: it runs beside the fault, which is none"; fi
  begin=$(now)
  "$3_$4_end"
  until "$3_is_back" >/dev/null 2>&1; do
    [ "$(since "$begin")" -lt 30 ] ||
      fail "$2, $4: not back within 30 s after the fault; $(inside "$1" systemctl show -p ActiveState,SubState,Result,NRestarts "$2" | tr '\n' ' ')"
  done
  out=$("$3_took" "$begin")
  "$3_unwatched"
  echo "ok: $2, $4 for $seconds s: back after $out s"
  [ "$3" = node ] || until node_is_connected >/dev/null 2>&1 || [ "$(since "$begin")" -ge 60 ]; do sleep 0.1; done
  echo "$2 $4 $out $(planet_took "$begin")" >> "$work/$id.outages"
}

echo "port = $port" >> "$meshd_config"
echo 'listen = "10.99.0.7:7077"' >> "$planet_config"
faults_of() { declare -F | sed -n "s/^declare -f $1_\(.*\)_begin$/\1/p"; }
line() { # CONTAINER UNIT LINE
  local fault
  for fault in $(faults_of "$3"); do play "$1" "$2" "$3" "$fault" || return 1; done
}
(trap - EXIT; line two meshd node) &
nodes=$!
(trap - EXIT; line one planet planet) &
planets=$!
lost=0
wait $nodes || lost=1
wait $planets || lost=1
[ $lost = 0 ] || fail "see above"

python3 - "$work/$id.outages" "$within" "$seconds" <<'PY' || fail "slower than $within s"
import sys
lines = [line.split() for line in open(sys.argv[1])]
worst = max(lines, key=lambda line: float(line[2]))
print(f"figure {len(lines)} start faults of {sys.argv[3]} s: back after {float(worst[2]):.2f} s at most "
      f"({worst[0]}, {worst[1]}; bound {sys.argv[2]} s)")
again = max((line for line in lines if line[0] == "planet"), key=lambda line: float(line[3]))
print(f"figure a node connected again to its planet: {float(again[3]):.2f} s at most ({again[1]})")
sys.exit(not (len(lines) == 20 and float(worst[2]) <= float(sys.argv[2])))
PY
