"""Host of one scoring script behind every protocol: state, threads, admission, drain, and live settings."""
