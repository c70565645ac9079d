"""Calls to Azure ML and its resource manager, with their errors. Imported when first used."""
