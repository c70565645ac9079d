"""Builds the generated Dockerfile for real, without a container engine or a registry; see `tools.image.images`."""
