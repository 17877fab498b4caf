#!/bin/sh
# Docker in a guest: boots a Debian root that has Docker on a kernel with the
# fragment `netfilter`, and runs containers in it (guest.sh). By hand only: in the
# lab it takes some minutes.
#
#   cargo build --release && tests/docker/run.sh
#
# Needs what `cargo xtask setup` installs. FLASHPAN names another flashpan.
set -eu
cd "$(dirname "$0")/../.."

flashpan=${FLASHPAN:-$PWD/target/x86_64-unknown-linux-gnu/release/flashpan}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/flashpan/lab
tree=$cache/docker-bookworm
image=$cache/docker-bookworm.erofs

# The image is made last and in one step: where it is, all is well.
if [ ! -f "$image" ]; then
    # Of an attempt as another user it cannot be removed.
    rm -rf "$tree" || mv "$tree" "$tree.old-$$"
    mkdir -p "$tree"
    # Who is not root cannot read what mmdebstrap unpacks, but its archive.
    mmdebstrap --variant=minbase --format=tar \
        --include=docker.io,iptables,nftables,ca-certificates,busybox-static \
        bookworm "$tree.tar"
    tar --numeric-owner --exclude='./dev/*' -xpf "$tree.tar" -C "$tree"
    all_root=--all-root
    if [ "$(id -u)" = 0 ]; then
        all_root=
    fi
    # shellcheck disable=SC2086 # One word, or none.
    mkfs.erofs --quiet $all_root "$image.new" "$tree"
    rm "$tree.tar"
    mv "$image.new" "$image"
fi

kernel=$("$flashpan" kernel build --fragment netfilter)

# Where KVM runs no ordinary guest, the lab does.
place='cargo xtask lab --timeout 3600 --'
if "$flashpan" doctor --json | tr -d ' \n' | grep -q '"name":"aguestruns","status":"ok"'; then
    place=
fi
# shellcheck disable=SC2086 # Several words, or none.
exec $place "$flashpan" run --kernel "$kernel" --rootfs "$image" \
    --privileged --cpus 2 --memory 1536M -- /bin/sh -c "$(cat tests/docker/guest.sh)"
