#!/usr/bin/env bash
# Make a virtual environment with dfsfs in it, installing what the system lacks.
#
#   contrib/setup.sh VENV REQUIREMENT [COMMAND...]
#
# REQUIREMENT is what pip installs (editable), COMMANDs are programs that must exist as well and
# whose Debian package has their name. Asks nothing: it runs without a terminal.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
requirement=$2
shift 2

missing=()
command -v fusermount3 >/dev/null || missing+=(fuse3)
command -v pkg-config >/dev/null || missing+=(pkg-config)
pkg-config --exists fuse3 2>/dev/null || missing+=(libfuse3-dev)
command -v gcc >/dev/null || missing+=(gcc)
# Debian's gcc package only recommends the C library's headers.
[[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
contrib/find-python.sh >/dev/null || missing+=(python3 python3-dev python3-venv)
for command in "$@"; do
    command -v "$command" >/dev/null || missing+=("$command")
done

if ((${#missing[@]})); then
    install=(apt-get install -y --no-install-recommends "${missing[@]}")
    if ! command -v apt-get >/dev/null; then
        echo "dfsfs needs ${missing[*]} (Debian's names); install them with this system's package manager" >&2
        exit 1
    fi
    as_root=()
    if ((EUID != 0)); then
        if ! sudo -n true 2>/dev/null && ! { [[ -t 0 ]] && command -v sudo >/dev/null; }; then
            echo "dfsfs needs packages that only root can install; run this once, then try again:" >&2
            echo "    sudo ${install[*]}" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq </dev/null
    "${as_root[@]}" "${install[@]}" -qq </dev/null >/dev/null
fi

python=$(contrib/find-python.sh) || {
    echo "no Python >= 3.11 with venv and headers was found; name one: make PYTHON=/path/to/python3" >&2
    exit 1
}
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    echo "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
echo "installing $requirement into $venv"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable "$requirement"
