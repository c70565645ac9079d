"""Several replicas behind one front."""
