"""What the agent can call, one tool a file, and the plain functions behind: pipeline, enrolment, calibration.

Tools measure; they never decide a verdict. May import: `refdiff.memory`, `refdiff.model`.
"""
