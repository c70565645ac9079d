"""Files for MLOps: workflows, a pipeline component, Bicep and Terraform."""
