"""3. The cluster: who we are there, what the targets mean now, and the agent's life.

`kubeconfig` says which API server and which user, `credentials` proves to be that user, `api`
asks and `watch` follows. Import the modules by name: this package itself imports nothing, so
that `krelay --help` pays for no cluster client.
"""
