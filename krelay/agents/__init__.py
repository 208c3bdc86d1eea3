"""Agents: start, reach and replace them; one or several alike behind the pool of a group."""
