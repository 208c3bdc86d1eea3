"""The cluster: its API server, the meaning of targets there, and the agent's life.

`auth` finds the server and proves the user's identity. `api` sends requests, `reflector` and
`informers` watch, `resolve` turns targets into endpoints, and `agent_lifecycle` runs the agent.
Import the modules by name: this package imports nothing, so `krelay --help` loads no HTTP client.
"""
