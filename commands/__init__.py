"""The command line: each module parses, hands over and prints; nothing heavy is imported until it is needed."""
