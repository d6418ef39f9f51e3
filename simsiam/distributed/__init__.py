"""Many processes that train one run: how they find each other, and what they exchange."""
