"""Verbs on live endpoints: deploy, rollout, status, logs, invoke and delete."""
