"""Plans: every setting of a deployment, derived and explained."""
