from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes, or the making of one, says how busy the machine is and nothing about what is tested.
# Everything else is as Hypothesis has it: fixed examples where CI is set, fresh ones elsewhere.
settings.register_profile("any machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
