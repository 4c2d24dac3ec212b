"""What turns stored rows into the features that are clustered: maps without training, networks and their views."""
