"""What a network keeps (accuracy) and what it costs (size, MACs, memory, latency), and the machine that says
so."""
