"""`krelay up --detach`: relay in a process that outlives its terminal."""
