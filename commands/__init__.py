"""The commands, by what they are about: each parses, hands over, prints; nothing heavy is imported until needed."""
