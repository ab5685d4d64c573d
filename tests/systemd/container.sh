# Containers for run.sh and demo.sh: image, boot, commands inside, reboot, removal. Sourced, not run.
# Whoever sources it names itself (id), its folder (work) and its containers (containers).
# systemd-nspawn and its library are unpacked, not installed: the machine's own systemd packages stay
# as they are.

suite=bookworm
packages=systemd,systemd-sysv,dbus,iproute2,iputils-ping,procps,nftables,iperf3,netbase

make_image() {
  command -v mmdebstrap >/dev/null || {
    echo "installing mmdebstrap"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends mmdebstrap >/dev/null
  }
  if [ ! -x "$work/nspawn/usr/bin/systemd-nspawn" ]; then
    mkdir -p "$work/debs"
    (cd "$work/debs" && apt-get download -q systemd-container libsystemd-shared >/dev/null 2>&1
     for deb in *.deb; do dpkg -x "$deb" "$work/nspawn"; done)
  fi
  [ "$(cat "$work/image.done" 2>/dev/null)" != "$suite $packages" ] || return 0
  local mirror
  mirror=$(sed -n 's/^URIs: //p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -1)
  [ -n "$mirror" ] || mirror=$(sed -n 's/^deb \(http[^ ]*\).*/\1/p' /etc/apt/sources.list | head -1)
  rm -rf "$work/image" "$work/image.done"
  mmdebstrap --quiet --variant=minbase --include="$packages" "$suite" "$work/image" "$mirror"
  echo "$suite $packages" > "$work/image.done"
}

make_tun() { # udev gives everybody the node; the capability is what counts
  [ -c "$work/tun" ] || mknod "$work/tun" c 10 200
  chmod 0666 "$work/tun"
}

make_link() { # a namespace per container, joined by one veth pair
  ip netns add "$id-one"
  ip netns add "$id-two"
  ip link add up0 netns "$id-one" type veth peer name up0 netns "$id-two"
}

boot() { # CONTAINER [ADDRESS...]
  local root=$work/$id-$1
  rm -rf "$root"
  cp -a "$work/image" "$root"
  echo "$id-$1" > "$root/etc/hostname"
  [ $# = 1 ] || underlay "$root" "${@:2}"
  start_container "$1"
}

underlay() { # ROOT ADDRESS...
  local root=$1 address commands=
  for address in "${@:2}"; do commands+="ip address replace $address/24 dev up0; "; done
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
  cat > "$root/etc/systemd/system/underlay.service" <<U
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link set lo up; ${commands}ip link set up0 up; ip route replace default via 10.99.0.254 dev up0'
[Install]
WantedBy=multi-user.target
U
  ln -sf ../underlay.service "$root/etc/systemd/system/multi-user.target.wants/underlay.service"
}

start_container() {
  local root=$work/$id-$1 lib=$work/nspawn/usr/lib/x86_64-linux-gnu/systemd
  [ -d "$lib" ] || lib=$(dirname "$(find "$work/nspawn" -name 'libsystemd-shared-*.so' | head -1)")
  LD_LIBRARY_PATH=$lib SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=${writable:-no} setsid \
    "$work/nspawn/usr/bin/systemd-nspawn" -q -D "$root" --register=no --keep-unit --machine="$id-$1" \
    --network-namespace-path="/run/netns/$id-$1" --capability=CAP_NET_ADMIN,CAP_NET_RAW \
    --bind="$work/tun:/dev/net/tun" --console=pipe -b < /dev/null > "$root.log" 2>&1 &
  echo $! > "$root.pid"
  local end=$((SECONDS + 60)) state
  while [ $SECONDS -lt $end ]; do
    state=$(inside "$1" systemctl is-system-running 2>/dev/null || true)
    case $state in running|degraded) echo "ok: container $1 is $state"; return 0 ;; esac
    sleep 0.2
  done
  echo "container $1 did not boot (it is ${state:-not there}):" >&2
  tail -n 20 "$root.log" >&2
  inside "$1" systemctl list-jobs --no-pager >&2 || true
  return 1
}

leader() { # the container's PID 1, or nothing
  local pid
  pid=$(cat "$work/$id-$1.pid" 2>/dev/null) || return 0
  cat "/proc/$pid/task/$pid/children" 2>/dev/null | cut -d' ' -f1
}

inside() { # CONTAINER COMMAND...
  local pid
  pid=$(leader "$1")
  shift
  [ -n "$pid" ] || return 1
  nsenter -t "$pid" -m -u -i -n -p -r -w -- "$@"
}

install_into() {
  make --no-print-directory install DESTDIR="$work/$id-$1" > "$work/$id-$1.install.log" 2>&1 || {
    tail -5 "$work/$id-$1.install.log" >&2
    fail "make install into container $1"
  }
  inside "$1" systemctl daemon-reload
}

stop_container() {
  local pid outer
  pid=$(leader "$1")
  outer=$(cat "$work/$id-$1.pid" 2>/dev/null) || return 0
  [ -z "$pid" ] || kill -RTMIN+4 "$pid" 2>/dev/null || true
  # A unit that doesn't stop has 10 s of its own before it is killed; the folder is locked until the container is gone.
  for _ in $(seq 200); do kill -0 "$outer" 2>/dev/null || break; sleep 0.1; done
  kill -KILL "$outer" 2>/dev/null || true
  for _ in $(seq 50); do kill -0 "$outer" 2>/dev/null || break; sleep 0.1; done
  rm -f "$work/$id-$1.pid"
}

reboot_container() { # the disk stays, everything else is new, the network devices' state too
  stop_container "$1"
  # The namespace outlives the container: take away what a reboot would.
  ip netns exec "$id-$1" sh -c 'ip link del mesh0 2>/dev/null; ip address flush dev up0; ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default; ip -6 rule flush; ip -6 rule add pref 32766 lookup main; nft flush ruleset; ip route flush table 7077; ip -6 route flush table 7077' 2>/dev/null || true
  start_container "$1"
}

tear_down() {
  set +e
  for c in "${containers[@]}"; do
    stop_container "$c"
    ip netns del "$id-$c" 2>/dev/null
    rm -rf "${work:?}/$id-$c" "$work/$id-$c.log" "$work/$id-$c.install.log"
  done
  rm -f "$work/$id".*
}
