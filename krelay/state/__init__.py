"""The spine: typed state, typed events, and the bus that carries both through a running krelay."""
