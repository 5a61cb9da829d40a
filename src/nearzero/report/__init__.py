"""Pages that open in a browser: self-contained, without scripts and without requests."""
