"""One scoring script behind every protocol: state, threads, admission, drain, and what may change meanwhile."""
