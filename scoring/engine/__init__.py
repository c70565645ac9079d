"""One inference thread behind a bounded queue: rows, batches, and handling of out-of-memory errors."""
