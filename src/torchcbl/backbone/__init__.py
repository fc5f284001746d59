"""The backbone: its names and sites, how it is called, what it returns, what may see what."""
