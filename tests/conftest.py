"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# How long a case takes, or its making, is the machine's business.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("any machine")
