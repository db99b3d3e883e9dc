# SPDX-License-Identifier: MIT
"""Training, evaluation and inference of a network that is handed in; names no network or data."""
