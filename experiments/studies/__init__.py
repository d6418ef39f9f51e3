"""What to compare: studies, claims and figures as files, and the settings that they come to."""
