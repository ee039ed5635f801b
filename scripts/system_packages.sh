#!/bin/sh
# Usage: system_packages.sh PYTHON
# Finds out which system packages an install with PYTHON lacks, and installs them where it may (root, or sudo without a
# password); otherwise stops with the line to run. With nothing lacking it does nothing.
set -eu
python=$1

# A library is there when it loads: ldconfig may be out of the user's PATH, and conda and containers keep theirs elsewhere.
missing=$("$python" - <<'PYTHON'
import ctypes
import importlib.util
import os
import sys

# Any one of the libraries serves; a computer with NVIDIA's driver needs no Mesa.
NEEDED = {
    "libegl1": ["libEGL.so.1"],
    "libgl1": ["libGL.so.1"],
    "libopengl0": ["libOpenGL.so.0"],
    "libegl-mesa0": ["libEGL_mesa.so.0", "libEGL_nvidia.so.0"],
}


def loads(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


packages = []
if sys.platform == "linux":
    packages = [package for package, libraries in NEEDED.items() if not any(map(loads, libraries))]
    if "libegl-mesa0" in packages:
        packages.append("libgl1-mesa-dri")
if importlib.util.find_spec("ensurepip") is None:
    packages.append("python%d.%d-venv" % sys.version_info[:2])
print(*packages)
PYTHON
)
[ -n "$missing" ] || exit 0

install="apt-get install -y --no-install-recommends $missing"
if ! command -v apt-get >/dev/null; then
    echo "This computer lacks what Debian calls: $missing. Install it with your package manager, then run make again." >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "System packages are missing. Run this, then make again:" >&2
    echo "    sudo apt-get update && sudo $install" >&2
    exit 1
fi
echo "Installing system packages: $missing"
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive $install -qq >/dev/null
