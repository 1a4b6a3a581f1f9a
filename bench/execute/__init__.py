"""Execution: one cell, and a pool of processes on this machine that runs many."""
