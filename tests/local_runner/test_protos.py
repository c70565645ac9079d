"""The generated code is what the .proto files say."""

import subprocess
import sys
from pathlib import Path

import local_runner.protos

PROTOS = Path(local_runner.protos.__file__).parent


def test_generated_code_is_current(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}"]
    command += [f"--grpc_python_out={tmp_path}"]
    command += [path.relative_to(PROTOS.parent.parent).as_posix() for path in sorted(PROTOS.glob("*.proto"))]
    subprocess.run(command, cwd=PROTOS.parent.parent, check=True, capture_output=True)
    made = {path.name: path.read_text() for path in tmp_path.rglob("*.py")}
    assert made == {path.name: path.read_text() for path in PROTOS.glob("*_pb2*.py")}, "run tools/protos.sh"
