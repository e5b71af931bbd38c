"""What the demo model is taught: seeded generators of exercises with worked solutions, their graders, its vocabulary."""
