#!/usr/bin/env bash
# Installs what the project needs and says what it installs. A second run installs nothing.
#
#   scripts/setup.sh           Debian packages, the virtual environment, the AWS CLI's own environment
#
# Exit codes: 0 ready, 69 (EX_UNAVAILABLE) the machine lacks root, network namespaces or apt.
set -euo pipefail
cd "$(dirname "$0")/.."

stop() { echo "enoki: $*" >&2; exit 69; }

[ "$(id -u)" = 0 ] || stop "needs root: it makes network namespaces and nftables tables; run it as root."

packages=(
  ca-certificates python3 python3-venv   # the interpreter that python3-nftables is built for
  nftables python3-nftables              # the firewall and its official binding
  iproute2 iputils-ping procps curl      # what the demo and its reader type
  iptables                               # both kinds: what kube-proxy and the AWS plugin leave on a node
  conntrack                              # connection tracking, seen from the command line
  containerd runc busybox-static         # the real runtime of the system tests, and its pause image
  gcc libc6-dev libpython3-dev           # link the CNI plugin into one static executable
  containernetworking-plugins            # ptp and host-local: the peer in the bench
)
missing=()
installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' "${packages[@]}" 2>/dev/null || true)"
for package in "${packages[@]}"; do
  [[ "$installed" == *" installed:$package "* ]] || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || stop "needs apt-get (Debian 12, 13 or Ubuntu 24.04) to install: ${missing[*]}."
  echo "enoki: installing Debian packages: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

unshare --net true 2>/dev/null \
  || stop "needs network namespaces, and 'unshare --net' is refused here (a container needs CAP_SYS_ADMIN)."

# venv_from LOCK DIRECTORY: an environment that holds exactly the lock file; made again when the lock changes.
venv_from() {
  local lock=$1 directory=$2 stamp
  stamp="$(/usr/bin/python3 --version) $(sha256sum < "$lock")"
  [ -f "$directory/.lock-stamp" ] && [ "$(cat "$directory/.lock-stamp")" = "$stamp" ] && return 0
  echo "enoki: installing Python packages of $lock into $directory"
  rm -rf "$directory"
  /usr/bin/python3 -m venv "$directory"
  "$directory/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r "$lock"
  # The official nftables binding is a Debian package of the system interpreter; the environment sees this one alone.
  local site
  site="$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  ln -sfn /usr/lib/python3/dist-packages/nftables "$site/nftables"
  echo "$stamp" > "$directory/.lock-stamp"
}

venv_from requirements.lock .venv
venv_from requirements-awscli.lock .venv-awscli

# promtool checks the alert rules. Debian has it in prometheus; installed, that would start a server, so this one file is
# taken out of the package.
if [ ! -x .venv/bin/promtool ]; then
  echo "enoki: taking promtool out of the Debian package prometheus into .venv/bin"
  fetched=$(mktemp -d)
  trap 'rm -rf "$fetched"' EXIT
  chmod 755 "$fetched"
  # apt compares what it fetches with the signed list; the second try is for a list that is older than the package.
  fetch() { (cd "$fetched" && apt-get download -qq -o APT::Sandbox::User=root prometheus); }
  fetch 2>/dev/null || { apt-get update -qq; fetch; }
  dpkg-deb --fsys-tarfile "$fetched"/prometheus_*.deb | tar -xO ./usr/bin/promtool > "$fetched/promtool"
  install -m 755 "$fetched/promtool" .venv/bin/promtool
fi

# The project itself runs from the checkout.
site="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
[ "$(cat "$site/enoki.pth" 2>/dev/null)" = "$PWD" ] || echo "$PWD" > "$site/enoki.pth"
[ -e .venv/bin/enoki ] || ln -sfn ../../bin/enoki .venv/bin/enoki
[ -e .venv/bin/enokictl ] || ln -sfn ../../bin/enokictl .venv/bin/enokictl
