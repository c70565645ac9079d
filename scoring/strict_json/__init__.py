"""JSON as every host sends and takes it, and untrusted JSON files."""
