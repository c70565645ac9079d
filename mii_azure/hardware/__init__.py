"""Instance types, their prices, and the time floors set by their performance ceilings."""
