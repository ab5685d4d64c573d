# Two booted containers on one link, `one` with the planet and a node, `two` with a node. Sourced, not run, by
# who has set what container.sh asks for.

containers=(one two)
. tests/systemd/container.sh

fail() {
  echo "FAIL: $*" >&2
  for c in one two; do
    echo "--- journal of container $c" >&2
    inside $c journalctl --no-pager -q -u meshd -u planet -n 40 >&2 2>/dev/null || true
  done
  exit 1
}
trap 'tear_down' EXIT
trap 'exit 130' INT TERM

expect() { # SECONDS TITLE COMMAND...
  local end=$((SECONDS + $1)) title=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "$title: not within the time; last try: $("$@" 2>&1 | tail -3)"
    sleep 0.3
  done
  echo "ok: $title"
}

peer_is_direct() { # CONTAINER PEER
  inside "$1" meshctl peers --json | python3 -c '
import json, sys
name = sys.argv[1]
item = [p for p in json.load(sys.stdin)["items"] if p["name"] == name][0]
assert item["state"] == "up" and item["path"]["kind"] != "relay", item
' "$2"
}

mesh_address() { # CONTAINER
  inside "$1" ip -j address show mesh0 | python3 -c '
import json, sys
print([a["local"] for a in json.load(sys.stdin)[0]["addr_info"] if a["scope"] == "global"][0])'
}

# The planet is at 10.99.0.7, an address of its own on the first machine's link.
two_machines() {
  local c key token=/etc/podmesh/join-token
  echo "== image"
  make_image
  echo "== two machines on one link"
  make_tun
  make_link
  boot one 10.99.0.1 10.99.0.7
  boot two 10.99.0.2

  echo "== planet and node on the first"
  for c in one two; do
    install_into $c
    # A call that the filter forbids ends its program here, and the journal tells.
    for u in meshd planet; do
      mkdir -p "$work/$id-$c/etc/systemd/system/$u.service.d"
      printf '[Service]\nSystemCallErrorNumber=kill\n' > "$work/$id-$c/etc/systemd/system/$u.service.d/kill.conf"
    done
    inside $c systemctl daemon-reload
  done
  inside one systemd-sysusers
  inside two systemd-sysusers
  key=$(inside one planet init | sed -n 's/^planet key: //p')
  [ -n "$key" ] || fail "planet init printed no key"
  inside one meshctl network create lab --planet "$key@10.99.0.7:7077" --dir /root/network --no-passphrase >/dev/null
  inside one planet adopt /root/network/network.podmesh >/dev/null
  inside one systemctl enable -q --now planet
  for c in one two; do
    inside one meshctl token create --dir /root/network --out "/root/token-$c" >/dev/null
    # A container may not write these; a machine does it at boot (sysctl.d).
    ip netns exec "$id-$c" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  done
  inside one systemctl enable -q --now meshd || fail "meshd does not start without a token"
  inside one meshctl join /root/token-one
  mkdir -p "$work/$id-two${token%/*}"
  mv "$work/$id-one/root/token-two" "$work/$id-two$token"
  chmod 0600 "$work/$id-two$token"
  inside two systemctl enable -q --now meshd
  expect 30 "joined by command and by credential: one sees two directly" peer_is_direct one "$id-two"
  expect 30 "joined by command and by credential: two sees one directly" peer_is_direct two "$id-one"
  rm "$work/$id-two$token" # it is used up, and nothing after this may need it
}
