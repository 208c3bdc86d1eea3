"""The transitions of the active config: the start, an edit, a restart."""
