"""What a solve is going to take: measured in its first rounds."""
