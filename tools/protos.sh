#!/usr/bin/env bash
# Regenerates local_runner/protos/*_pb2*.py from the .proto files beside them.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-.venv/bin/python}" -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. local_runner/protos/*.proto
