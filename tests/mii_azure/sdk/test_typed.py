"""A user's project over the installed wheel: mypy knows our calls, and finds what is wrong in theirs."""

import io
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import get_args, get_type_hints

from mii_azure.mlops.wheel import wheel
from mii_azure.spec import OtherPreferences, Preferences, Spec

#: Libraries that the types of our calls do not need; reading them takes mypy minutes.
UNREAD = """
    azure cryptography cyclonedx deepspeed fastapi filelock google grpc httpx httpx2 huggingface_hub jinja2 numpy
    opentelemetry packageurl packaging prometheus_client psutil requests rich safetensors starlette tokenizers torch
    transformers typer uvicorn
"""
CONFIGURATION = "[mypy]\nstrict = True\n" + "".join(
    f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = True\n" for name in UNREAD.split()
)
#: Fields that take any collection, and are kept as one of their own.
COLLECTIONS = ("adapters", "identities", "passes_off", "passes_on", "secrets", "served_name")
PROJECT = """
import mii_azure

plan = mii_azure.plan("fill-mask", "./model", dtype="float16", instance_count=2)
name: str = plan.instance_type
folder = mii_azure.generate("fill-mask", "./model", name="mlm", passes_off=["cpu"], instance_type="Standard_F8s_v2")
found = [finding.remedy for finding in mii_azure.check(folder)]
agree: bool = mii_azure.parity(folder, targets=["in-process", "grpc"], progress=print).agree
speed: float = mii_azure.bench(folder, count=10).rows[0].p50_ms
mii_azure.deploy("fill-mask", "./model", "mlm", mii_azure.DeploymentType.LOCAL, dtype="float32", progress=print)
mii_azure.verify(folder)
mii_azure.terminate("mlm")

mii_azure.generate("fill-mask", "./model", "mlm", dtype="int3")  # wrong
mii_azure.generate("fill-mask", "./model", "mlm", dtyp="float16")  # wrong
mii_azure.plan("fill-mask", "./model", instance_count="two")  # wrong
mii_azure.deploy("fill-mask", "./model", "mlm", instance_typ="Standard_F8s_v2")  # wrong
plan.instance_tipe  # wrong
"""


def test_mypy_reads_the_wheel_in_a_users_project(tmp_path: Path) -> None:
    site = tmp_path / "venv" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    zipfile.ZipFile(io.BytesIO(wheel()[1])).extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "mypy", "--python-executable", tmp_path / "venv" / "bin" / "python"]
    command += ["--cache-dir", tmp_path / "cache", "--no-error-summary", "project.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    wrong = [number for number, line in enumerate(PROJECT.splitlines(), 1) if line.endswith("# wrong")]
    told = {int(number) for number in re.findall(r"^project\.py:(\d+): error", done.stdout, re.MULTILINE)}
    assert sorted(told) == wrong, done.stdout + done.stderr


def test_preferences_are_the_fields_of_a_spec() -> None:
    hints = get_type_hints(Preferences)
    assert set(hints) == set(Spec.model_fields) - {"task", "model", "name"}
    assert set(get_type_hints(OtherPreferences)) == set(hints) - {"instance_type"}
    for name, hint in hints.items():
        field = Spec.model_fields[name].annotation
        assert get_args(hint) == get_args(field) or name in COLLECTIONS, name
