"""The network of this machine: listening sockets, name lookups, changes of routes, proxies."""
