"""Reinforcement learning with rewards that a program can check.

environment → rollouts by the engine → groups and advantages → Batch → objective → Loop
environment  a problem, what answers it, and what that is worth
rollout      the policy at work: token ids, log-probabilities and experts as they were drawn
feed         groups of rollouts as the batches of a step
grpo         advantages and the objective
recipe       `ossia train rl`
"""
