"""Default number of front ends: as many as pay on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path

from local_runner.errors import RunnerFailed
from local_runner.process.devices import gpus
from scoring.host_api import Deployment
from scoring.host_api import cores as cores_here

#: Tasks whose streams make more work for the interpreter than for a GPU.
STREAMING = ("text-generation", "conversational")
_ONE_PROCESS = ("text-to-image", "automatic-speech-recognition")  # their rows or answers are large, and few
#: A process each for so many cores, up to so many; on fewer cores processes would take them from each other.
_CORES_EACH, _USUAL_MOST, _LEAST_CORES = 3, 8, 8


def number_of(asked: int | None, code: Path, environment: Mapping[str, str] = os.environ, cores: int = 0) -> int:
    """Front ends of a bundle's server, 0 for none: as asked, else by GPU, cores and task; raises RunnerFailed."""
    task = Deployment.read(code / "deployment.json").task
    if asked is not None:
        if asked and task in _ONE_PROCESS:
            raise RunnerFailed(f"{task} is answered by the engine's process alone.", "Leave out --front-ends.")
        return asked
    return usual(task, cores or cores_here(), bool(gpus(environment)))


def usual(task: str, cores: int, gpu: bool) -> int:
    """Number of front ends on a machine with `cores` cores, with or without a GPU."""
    if task not in STREAMING or cores < _LEAST_CORES or not gpu:
        return 0
    return min(_USUAL_MOST, cores // _CORES_EACH)
