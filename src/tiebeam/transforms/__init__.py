"""PTransforms over record batches: one file per idea, no IO, no options."""
