"""What models of other kinds make of the tuned encoders: images from text, text from images."""
