"""int8 weights: written tensor by tensor, and measured against the original."""
