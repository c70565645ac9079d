"""Tests of the optimisation passes."""
