"""Meanings that all protocols share: errors over the wire, the Open Inference Protocol, OpenAI's requests."""
