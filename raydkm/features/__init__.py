"""What turns stored rows into the features that are clustered."""
