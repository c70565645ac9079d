"""Hosts in child processes: started, watched until ready, ended."""
