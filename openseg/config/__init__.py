# SPDX-License-Identifier: MIT
"""The configuration of a run: a tree of dataclasses, filled from YAML and `key=value` words."""

from openseg.config.loading import load_config, shipped_configs, to_yaml
from openseg.config.schema import Config, describe

__all__ = ["Config", "describe", "load_config", "shipped_configs", "to_yaml"]
