#!/usr/bin/env bash
# Builds the image where no registry of base images can be reached: on a base made by debootstrap, with buildah.
#
#   scripts/image.sh ARCHIVE      writes an archive that `ctr images import` reads; its name is enoki.test/agent:1
#
# What takes minutes (the base, layers) is kept in ENOKI_CACHE, /var/cache/enoki unless set; remove it at any time.
# Exit codes: 0 built, 69 (EX_UNAVAILABLE) this machine cannot make a base: it says why; else the build failed.
# Where a registry is reachable, `buildah build -f deploy/image/Containerfile .` is all that is needed.
set -euo pipefail
archive=$(realpath "${1:?usage: scripts/image.sh ARCHIVE}")
cd "$(dirname "$0")/.."
cache=${ENOKI_CACHE:-/var/cache/enoki}
suite=bookworm

unavailable() { echo "enoki: no image: $*" >&2; exit 69; }

rm -f "$archive"
missing=()
for program in buildah debootstrap; do
  command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing+=("$program")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "enoki: installing Debian packages: ${missing[*]}"
  command -v apt-get >/dev/null || unavailable "needs apt-get to install ${missing[*]}"
  apt-get update -qq || unavailable "apt-get cannot reach a Debian mirror"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
    || unavailable "apt-get cannot install ${missing[*]}"
fi
mkdir -p "$cache"

base="$cache/base-$suite"
if [ ! -e "$base.done" ]; then
  echo "enoki: making a Debian $suite base in $base"
  rm -rf "$base"
  # From where this machine has its own packages, when it is of this suite; else from debootstrap's default.
  sources=$(apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' \
    | grep -E " $suite(-updates|-security)? main\$" | sort -u || true)
  mirror=$(awk -v suite="$suite" '$3 == suite { print $2; exit }' <<<"$sources")
  debootstrap --variant=minbase "$suite" "$base" ${mirror:+"$mirror"} >"$base.log" \
    || unavailable "debootstrap fails here: $(tail -n 1 "$base.log") (all of it: $base.log)"
  # Security updates as on this machine.
  [ -z "$mirror" ] || echo "$sources" >"$base/etc/apt/sources.list"
  # As Debian's slim images: what nobody reads in a container goes.
  rm -rf "$base"/usr/share/{doc,info,locale,man}/* "$base"/var/cache/apt/archives/*.deb "$base"/var/lib/apt/lists/*
  touch "$base.done"
fi

# On top of another overlay (a machine that is itself a container) only plain copies work.
driver=overlay
[ "$(stat -f -c %T "$cache")" != overlayfs ] || driver=vfs
run=(buildah --root "$cache/storage-$driver" --runroot "$cache/run" --storage-driver "$driver")
if ! "${run[@]}" inspect --type image enoki.test/base:1 >/dev/null 2>&1; then
  echo "enoki: importing the base"
  container=$("${run[@]}" from scratch) || unavailable "buildah cannot make a container here"
  "${run[@]}" copy -q "$container" "$base" / >/dev/null
  "${run[@]}" commit -q --rm "$container" enoki.test/base:1 >/dev/null
fi

# The machine's certificates, so that a build behind a proxy that terminates TLS reaches PyPI; nothing of them stays.
certificates=/etc/ssl/certs/ca-certificates.crt
printf '[global]\ncert = /run/certificates.crt\n' >"$cache/pip.conf"
# chroot: a nested runtime is refused in many containers.
"${run[@]}" build -q --isolation chroot --network host --layers --build-arg BASE=enoki.test/base:1 \
  --volume "$certificates:/run/certificates.crt:ro" --volume "$cache/pip.conf:/etc/pip.conf:ro" \
  -f deploy/image/Containerfile --ignorefile deploy/image/Containerfile.dockerignore -t enoki.test/agent:1 . >/dev/null
"${run[@]}" push -q enoki.test/agent:1 "docker-archive:$archive:enoki.test/agent:1"
