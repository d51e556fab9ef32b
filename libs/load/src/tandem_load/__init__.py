"""Traffic, the load that it makes on a server, and what was measured: for `tandem bench`, the simulator and bench/."""
