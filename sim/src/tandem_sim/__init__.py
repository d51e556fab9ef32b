"""Whole clusters on virtual time: real router, scheduler, block pool and planner, simulated GPUs."""
