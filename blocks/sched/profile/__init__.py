"""What a model takes in each parallel configuration: seconds, bytes, and where they come from.

One plain-text format serves measurements, published tables and what a planner predicts. Needs
neither torch nor numpy.
"""

from blocks.sched.profile.bundled import bundled_profile, bundled_profiles
from blocks.sched.profile.configuration import Configuration
from blocks.sched.profile.profile import Profile, Provenance, single_pass
from blocks.sched.profile.profile_file import (
    format_profile,
    load_profile,
    parse_profile,
    save_profile,
)
from blocks.sched.profile.roofline import Decoder, Device, roofline_profile
from blocks.sched.profile.timing import BatchTime, DecodeTime, PrefillTime, Timing

__all__ = [
    "BatchTime",
    "Configuration",
    "DecodeTime",
    "Decoder",
    "Device",
    "PrefillTime",
    "Profile",
    "Provenance",
    "Timing",
    "bundled_profile",
    "bundled_profiles",
    "format_profile",
    "load_profile",
    "parse_profile",
    "roofline_profile",
    "save_profile",
    "single_pass",
]
