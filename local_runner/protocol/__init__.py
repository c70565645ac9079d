"""Semantics shared by all protocols: errors over the wire, the Open Inference Protocol, OpenAI's requests."""
