"""What stored rows are made into before they are clustered: maps, encoders and their views."""
