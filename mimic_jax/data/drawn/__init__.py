"""Pictures that need no download: drawn faces, shapes and scenes."""
