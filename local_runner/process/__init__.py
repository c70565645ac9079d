"""Hosts in processes of their own: started, watched until ready, ended."""
