"""The SOCKS5 and HTTP proxy into a cluster: a listener whose clients say where each one goes."""
