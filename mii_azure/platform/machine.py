"""Description of an instance type that the data do not know: what a plan needs of it, from its data sheet."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_OF_GPUS = ("gpu_memory", "gpu_bandwidth", "gpu_tflops", "gpu_capability")
_OF_MACHINE = ("cores", "ram", "disk")
DESCRIPTION = ("gpus", *_OF_GPUS, *_OF_MACHINE)


class MachineOptions(BaseModel):
    """Part of a spec that describes a machine; with every default the instance type is one of the data's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cores: int | None = Field(None, ge=1, le=1024, description="vCPUs of an instance type that the data do not know.")
    ram: float | None = Field(None, gt=0, le=65536, description="Its RAM in GiB.")
    disk: float | None = Field(None, gt=0, le=1_000_000, description="Its local disk in GiB.")
    gpus: int | None = Field(None, ge=0, le=16, description="Its NVIDIA GPUs; none when absent.")
    gpu_memory: float | None = Field(None, gt=0, le=1024, description="Memory of each of its GPUs in GB.")
    gpu_bandwidth: float | None = Field(None, gt=0, le=50_000, description="Memory bandwidth of each GPU in GB/s.")
    gpu_tflops: float | None = Field(
        None, gt=0, le=50_000, description="Peak of each GPU in 16 bits, dense, in TFLOPS, as its data sheet says."
    )
    gpu_capability: float | None = Field(None, ge=5, le=20, description="Compute capability of its GPUs, e.g. 9.0.")

    @property
    def describes(self) -> bool:
        """True if anything of a machine is described."""
        return any(getattr(self, name) is not None for name in DESCRIPTION)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.describes:
            return self
        needed = (*_OF_MACHINE, *(_OF_GPUS if self.gpus else ()))
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"a machine is described by {' and '.join(missing)} too")
        if not self.gpus and any(getattr(self, name) is not None for name in _OF_GPUS):
            raise ValueError("GPUs are described, and gpus does not say how many")
        return self
