"""A trained model in the formats of the libraries that people use, each proved to give the same embeddings."""
