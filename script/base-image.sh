#!/usr/bin/env bash
# Make a base image without a registry: base-image.sh [TAG], by default cnnbench-base:bookworm.
# A minimal Debian by debootstrap, with this host's extra CA certificates; needs root. DEBIAN_MIRROR chooses the mirror,
# CONTAINER_CLI the engine's command line.
set -euo pipefail
tag=${1:-cnnbench-base:bookworm}
read -ra cli <<<"${CONTAINER_CLI:-docker}"

fail() {
    echo "base-image.sh: $1" >&2
    exit 2
}
[[ $# -le 1 && $tag != -* ]] || fail "usage: base-image.sh [TAG]"
((EUID == 0)) || fail "must be run as root: debootstrap makes device nodes and changes its root"
command -v debootstrap >/dev/null || fail "debootstrap: not found; on Debian and Ubuntu: apt-get install debootstrap"
"${cli[@]}" version >/dev/null || fail "${cli[*]}: no engine answers; start it, or set DOCKER_HOST or CONTAINER_CLI"

rootfs=$(mktemp --directory)
trap 'rm -rf --one-file-system "$rootfs"' EXIT
# The packages are those that the Dockerfiles install: a build then needs nothing of a Debian mirror.
debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev,python3,python3-venv bookworm \
    "$rootfs" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
bundle=/etc/ssl/certs/ca-certificates.crt
find /usr/local/share/ca-certificates -name '*.crt' -exec cp -t "$rootfs/usr/local/share/ca-certificates" {} +
chroot "$rootfs" update-ca-certificates
# Translations and manuals, as in the public slim images.
rm -rf "$rootfs"/usr/share/{locale,man,info}
find "$rootfs/usr/share/doc" -type f ! -name copyright -delete
rm -rf "$rootfs"/var/cache/apt/*.bin "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/*

# pip brings its own certificates and has to be told of the system's. One variable a line: podman takes no more.
changes=()
for name in PIP_CERT REQUESTS_CA_BUNDLE SSL_CERT_FILE; do
    changes+=(--change "ENV $name=$bundle")
done
tar --directory "$rootfs" --create . | "${cli[@]}" import "${changes[@]}" - "$tag"
echo "base-image.sh: $tag is made; give it to cmake as -DBASE_IMAGE=$tag"
