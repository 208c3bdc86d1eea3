"""`krelay add` and `krelay remove`: edit the file, and have a running krelay apply it."""
