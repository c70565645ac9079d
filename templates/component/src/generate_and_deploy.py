"""The pipeline step: writes a bundle, checks it, and rolls it out where that is asked for.

In a job Azure ML names the workspace in AZUREML_ARM_*; the job's identity needs the role AzureML Data Scientist there.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import mii_azure


def main(arguments: list[str]) -> int:
    """Exit status 1 where the check finds an error: nothing is deployed then."""
    parser = argparse.ArgumentParser()
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
    from mii_azure.azure.rollout import rollout

    names = ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")
    rollout(bundle, connect(*(os.environ[f"AZUREML_ARM_{name}"] for name in names)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
