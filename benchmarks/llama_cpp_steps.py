"""Steps of llama.cpp for `benchmarks.cpu_decoders`, in a process whose threads wait as llama.cpp has them wait.

`python -m benchmarks.llama_cpp_steps MODEL.gguf PROMPT TOKENS` prints the milliseconds a token, with the faster of one
and two threads, for every line that it reads.
"""

import os
import sys
import time
from statistics import median


def main() -> None:
    """Load, then measure whenever it is told to."""
    import llama_cpp  # type: ignore[import-not-found,unused-ignore]

    path, prompt, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    counts = sorted({1, len(os.sched_getaffinity(0))})
    others = [
        llama_cpp.Llama(path, n_ctx=256, n_threads=count, n_threads_batch=count, verbose=False) for count in counts
    ]
    print("ready", flush=True)
    for _ in sys.stdin:
        found = []
        for other in others:
            other.reset()
            other.eval(list(range(5, 5 + prompt)))
            times = []
            for number in range(tokens):
                began = time.perf_counter()
                other.eval([7 + number])
                times.append(time.perf_counter() - began)
            found.append(1e3 * median(times))
        print(min(found), flush=True)


if __name__ == "__main__":
    main()
