"""The pipeline step: writes a bundle, checks it, and rolls it out where that is asked for.

Its arguments come on standard input, one a line, where no shell has read them.
In a job Azure ML names the workspace in AZUREML_ARM_*; the job's identity needs the role AzureML Data Scientist there.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import mii_azure


def read(text: str) -> list[str]:
    """The arguments in `--name=value` lines; exits with 2 where a name comes twice: a value has more than one line."""
    lines = [line for line in text.split("\n") if line.strip()]
    names = [line.partition("=")[0] for line in lines]
    if len(set(names)) < len(names):
        sys.stderr.write("error: a value of an input has more than one line\n")
        sys.exit(2)
    return lines


def main(arguments: list[str]) -> int:
    """Exit status 1 where the check finds an error: nothing is deployed then."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model", "task", "name", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--instance-type")
    parser.add_argument("--rollout", default="false")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        bundle = mii_azure.generate(
            asked.task, asked.model, asked.name, output=Path(folder) / "bundle", instance_type=asked.instance_type
        )
        findings = mii_azure.check(bundle)
        for finding in findings:
            sys.stdout.write(f"{finding.id} {finding.severity}: {finding.message} {finding.remedy}\n")
        if any(finding.severity == "error" for finding in findings):
            return 1
        shutil.copytree(bundle, asked.output, dirs_exist_ok=True)
        if asked.rollout.lower() == "true":
            _roll_out(bundle)
    return 0


def _roll_out(bundle: Path) -> None:
    from mii_azure.azure.client import connect
    from mii_azure.operations.rollout import rollout

    names = ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")
    rollout(bundle, connect(*(os.environ[f"AZUREML_ARM_{name}"] for name in names)))


if __name__ == "__main__":
    sys.exit(main(read(sys.stdin.read())))
