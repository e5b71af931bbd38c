"""What the demo model is taught: seeded exercises with worked solutions, their graders, its vocabulary."""
