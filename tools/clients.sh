#!/usr/bin/env bash
# The official clients at their newest releases, each in an environment of its own over .venv, and the tests that use
# them: what an environment of the project's own pins cannot hold together.
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
http=tests/local_runner/http

environment() { # NAME PACKAGE...: packages that it does not have are those of .venv
  local folder=.cache/clients/$1
  shift
  .venv/bin/python -m venv "$folder"
  echo "$site" > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/zz_project.pth"
  "$folder/bin/python" -m pip install -qq --upgrade "$@"
}

tell() { # NAME PACKAGE...
  local folder=.cache/clients/$1
  shift
  "$folder/bin/python" -c 'import sys; from importlib.metadata import version
print("\n" + ", ".join(f"{name} {version(name)}" for name in sys.argv[1:]))' "$@"
}

environment openai openai anthropic langchain-openai cohere huggingface_hub
tell openai openai anthropic langchain-openai langchain-core cohere huggingface-hub
.cache/clients/openai/bin/python -m pytest "$http" -k "not llama_index and not instructor"

environment instructor instructor
tell instructor instructor openai
.cache/clients/instructor/bin/python -m pytest "$http/test_clients.py" -k instructor

environment llama-index llama-index-llms-openai-like llama-index-embeddings-openai-like
tell llama-index llama-index-llms-openai-like llama-index-embeddings-openai-like openai
.cache/clients/llama-index/bin/python -m pytest "$http/test_clients.py" -k llama_index

# Its protobuf is older than the server's, so that only the client runs there.
.venv/bin/python -m venv .cache/clients/triton
.cache/clients/triton/bin/python -m pip install -qq --upgrade 'tritonclient[grpc,http]'
tell triton tritonclient protobuf
MII_AZURE_TRITON_PYTHON="$PWD/.cache/clients/triton/bin/python" .venv/bin/pytest tests/local_runner/protocol/test_triton.py
