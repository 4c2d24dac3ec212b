"""Rows: where they come from, what is refused, how they are held, and where assignments go."""
