"""Run folders: who owns one, what state it is in, with which code it was made."""
