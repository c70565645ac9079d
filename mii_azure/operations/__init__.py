"""The verbs over live endpoints: deploy, rollout, status, logs, invoke and delete."""
