"""Azure ML through Microsoft's own client: deploy, roll out, operate. Imported when first used."""
