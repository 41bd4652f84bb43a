"""Published layouts of pictures, one module each with `build(root, split, options) -> Source`."""
