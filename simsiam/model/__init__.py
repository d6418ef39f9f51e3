"""The Siamese network (Algorithm 1) and its parts: backbone, heads, losses, targets, batch normalisation."""
