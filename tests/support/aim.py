"""Prompts of ragged lengths for AIM's walk along attention."""

from vtcframe.needs import Flow

FLOW = Flow((-1,))
