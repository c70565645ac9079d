"""Schemas of the tasks as data: parameters, inputs, answers and samples; no torch here."""
