"""Build NSFW-Caps: minimal unsafe edits of captions of unusual objects, with images."""
