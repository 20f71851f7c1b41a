"""What provisioning and verifying refuse. Every text says what to do next."""

from shared.errors import LilithError


class ProvisionError(LilithError):
    """The fabric is not what this system promises; nothing was changed after the point of refusal."""
