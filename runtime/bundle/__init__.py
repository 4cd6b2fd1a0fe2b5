"""Bundle folders: the manifest, and files that are read and written whole."""
