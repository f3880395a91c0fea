#!/usr/bin/env bash
# Mount for `make run`: finds everything in place on a second run, says what is where.
#
#   contrib/run.sh DFS-MOUNT MOUNTPOINT [OPTION...]
set -euo pipefail

dfs_mount=$1
mountpoint=$2
shift 2
dfs=$(dirname "$dfs_mount")/dfs

# /proc/self/mountinfo, not stat: a dead mount answers no stat.
mounted() {
    grep -qE "^[^ ]+ [^ ]+ [^ ]+ [^ ]+ $(printf '%s' "$mountpoint" | sed 's/[][\.*^$+?(){}|/]/\\&/g') .* - fuse\.?[^ ]* dfs " /proc/self/mountinfo
}

mountpoint=$(realpath -m "$mountpoint")
if mounted && ls "$mountpoint" >/dev/null 2>&1; then
    echo "dfs is mounted at $mountpoint already"
    if (($#)); then
        echo "the options $* were not used; unmount it first: fusermount3 -u $mountpoint" >&2
        exit 1
    fi
    "$dfs" status || true
    exit 0
fi
if mounted; then
    echo "clearing $mountpoint, whose node is dead"
    fusermount3 -uz "$mountpoint"
fi
if [[ ! -d $mountpoint ]] && ! mkdir -p "$mountpoint" 2>/dev/null; then
    echo "$mountpoint cannot be made; choose a place of your own: make run MOUNT=\$HOME/dfs" >&2
    exit 1
fi
"$dfs_mount" "$mountpoint" "$@"
echo "(the programs are in $(realpath "$(dirname "$dfs_mount")"); from a checkout there: make run ARGS=\"--bootstrap ... --key ...\")"
