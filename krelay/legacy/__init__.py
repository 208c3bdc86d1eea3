"""Legacy mode (v0), for agents of the Go krelay: each stream has a tunnel to itself."""
