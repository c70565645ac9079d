"""One inference thread behind a bounded queue: rows, batches, and what running out of memory means."""
