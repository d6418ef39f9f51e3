"""The core: images in, curves and a checkpoint out. Knows nothing of studies, launchers or figures."""
