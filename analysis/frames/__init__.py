"""Run folders as two tidy frames: logged points, and runs."""
