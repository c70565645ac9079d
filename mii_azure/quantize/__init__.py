"""int8 weights: written tensor by tensor, and compared with the original."""
