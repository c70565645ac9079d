#!/usr/bin/env bash
# Builds the generated CPU image for real and asks the server inside it; installs Debian's own tools for that if absent.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v buildah >/dev/null && command -v debootstrap >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        buildah debootstrap iproute2 util-linux curl >/dev/null
}
MII_AZURE_IMAGE=1 exec .venv/bin/pytest -m image tests/scenarios/image "$@"
