"""The commands: each parses, calls one library function, and prints. Heavy imports stay inside the functions."""
