"""Claims decided: the quantities of a check, intervals over seeds, verdicts."""
