"""Agents: started, reached, replaced; one, or several alike, behind the pool of a group."""
