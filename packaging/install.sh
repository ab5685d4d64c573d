#!/bin/sh
# Puts the built programs and their files in place, or takes them away again.
#   install.sh install|uninstall DESTDIR PREFIX SYSCONFDIR UNITDIR CNIBINDIR
# With an empty DESTDIR the users are made and systemd is told; with one (a package build) not.
# Files that running programs read are put in place by rename, the CNI configuration last.
set -eu
verb=$1 dest=$2 prefix=$3 sysconf=$4 units=$5 cni=$6
top=$(cd "$(dirname "$0")/.." && pwd)

put() { # MODE SOURCE TARGET
  mkdir -p "$(dirname "$dest$3")"
  install -m "$1" "$2" "$dest$3.new"
  mv -f "$dest$3.new" "$dest$3"
}

unit() { # MODE SOURCE TARGET: the shipped unit, with the folders of this installation
  mkdir -p "$(dirname "$dest$3")"
  sed -e "s|^ExecStart=/usr/bin/|ExecStart=$prefix/bin/|" -e "s|:/etc/podmesh/|:$sysconf/podmesh/|" \
    -e "s| /etc/podmesh/| $sysconf/podmesh/|g" "$2" > "$dest$3.new"
  chmod "$1" "$dest$3.new"
  mv -f "$dest$3.new" "$dest$3"
}

units() { # calls "$1 MODE SOURCE TARGET" for each unit
  for u in meshd planet; do "$1" 0644 "$top/packaging/systemd/$u.service" "$units/$u.service"; done
}

files() { # calls "$1 MODE SOURCE TARGET" for each file
  for p in meshd meshctl planet; do "$1" 0755 "$top/target/release/$p" "$prefix/bin/$p"; done
  "$1" 0755 "$top/target/release/podmesh" "$cni/podmesh"
  # Their readers look in /usr/lib, whatever the prefix is.
  "$1" 0644 "$top/packaging/sysusers.d/podmesh.conf" /usr/lib/sysusers.d/podmesh.conf
  "$1" 0644 "$top/packaging/sysctl.d/90-podmesh.conf" /usr/lib/sysctl.d/90-podmesh.conf
  "$1" 0644 "$top/packaging/networkd/90-podmesh.conf" /usr/lib/systemd/networkd.conf.d/90-podmesh.conf
  "$1" 0644 "$top/packaging/networkmanager/90-podmesh.conf" /usr/lib/NetworkManager/conf.d/90-podmesh.conf
  for c in meshd planet; do "$1" 0644 "$top/packaging/config/$c.toml" "$prefix/share/doc/podmesh/$c.toml"; done
  "$1" 0644 "$top/packaging/cni/10-podmesh.conflist" "$prefix/share/podmesh/10-podmesh.conflist"
  for m in "$top"/target/man/*; do "$1" 0644 "$m" "$prefix/share/man/man${m##*.}/$(basename "$m")"; done
  "$1" 0644 "$top/target/completions/meshctl.bash" "$prefix/share/bash-completion/completions/meshctl"
  "$1" 0644 "$top/target/completions/meshctl.zsh" "$prefix/share/zsh/site-functions/_meshctl"
  "$1" 0644 "$top/target/completions/meshctl.fish" "$prefix/share/fish/vendor_completions.d/meshctl.fish"
}

take() { rm -f "$dest$3"; }

case $verb in
install)
  units unit
  files put
  mkdir -p "$dest$sysconf/podmesh"
  if [ -z "$dest" ]; then
    command -v systemd-sysusers >/dev/null && systemd-sysusers podmesh.conf
    [ -d /run/systemd/system ] && systemctl daemon-reload
    [ -d /run/systemd/system ] && systemctl restart systemd-sysctl.service
    echo "installed. A node: put a join token into $sysconf/podmesh/join-token (mode 0600), then"
    echo "  systemctl enable --now meshd && meshctl wait && meshctl peers"
    echo "pods: cp $prefix/share/podmesh/10-podmesh.conflist /etc/cni/net.d/"
  fi ;;
uninstall)
  if [ -z "$dest" ] && [ -d /run/systemd/system ]; then systemctl disable --now meshd planet 2>/dev/null || true; fi
  units take
  files take
  if [ -z "$dest" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
  echo "uninstalled. Left in place: $sysconf/podmesh, /var/lib/podmesh, /var/lib/podmesh-planet, and mesh0 until the next boot" ;;
*) echo "usage: install.sh install|uninstall DESTDIR PREFIX SYSCONFDIR UNITDIR CNIBINDIR" >&2; exit 3 ;;
esac
