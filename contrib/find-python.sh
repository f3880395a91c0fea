#!/usr/bin/env bash
# Print the newest Python >= 3.11, the system's own before others, that can make a virtual environment and compile an extension.
# Version-manager shims that only print an error, and Debian's python3 without ensurepip or headers,
# are passed over: `command -v python3` alone proves nothing.
set -euo pipefail

# Prints the interpreter's own path, so that a shim is resolved once and for all.
probe() {
    "$1" - 2>/dev/null <<'PY'
import os, sys, sysconfig
import ensurepip, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
if sys.version_info < (3, 11) or not os.path.exists(header):
    sys.exit(1)
print(sys.executable)
PY
}

for name in ${PYTHON:-} {/usr/bin/,}python3.{14,13,12,11} /usr/bin/python3 python3; do
    command -v "$name" >/dev/null || continue
    probe "$name" && exit 0
done
exit 1
