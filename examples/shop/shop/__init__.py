"""A small shop: a web service that keeps its stock in Redis and counts its sales."""
