"""What is measured of features and projections: kNN, linear evaluation, collapse diagnostics."""
