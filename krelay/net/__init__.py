"""The network of this machine: listening sockets, name look-ups, changes of address, proxies."""
