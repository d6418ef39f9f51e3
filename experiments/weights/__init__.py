"""Weights of ended runs: linear evaluation, import, export."""
