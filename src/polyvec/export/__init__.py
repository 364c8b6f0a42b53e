"""Models written in formats that other libraries read."""
