"""Authentication: the server and the user of a context, and proof of being that user.

`kubeconfig` finds both. `credentials` keeps an `ApiAccess` fresh, made of an `identity` that comes
from kubeconfig itself, an exec plugin or an OIDC issuer.
"""
