"""Instance types, their prices, and the floors that their ceilings set."""
