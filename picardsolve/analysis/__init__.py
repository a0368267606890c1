"""What a solve is going to take, told before it."""
