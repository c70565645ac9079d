"""JSON as every host sends and takes it, and JSON files whoever wrote them."""
