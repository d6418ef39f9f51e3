"""What runs in the jobs of a launch: workers that train cells, and the follow-up."""
