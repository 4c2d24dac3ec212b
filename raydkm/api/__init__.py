"""What jobs, the CLI and users call."""
