"""GPU kernels of the passes; Triton is imported only by the modules that hold kernels."""
