"""What is true of a running krelay, and what happens in it: the snapshot and the events."""
