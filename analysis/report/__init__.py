"""Tables, words and pages on one study and on all."""
