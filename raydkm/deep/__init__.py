"""Encoders that learn together with the clusters: pre-training, rounds on targets, and what is clustered at the end."""
