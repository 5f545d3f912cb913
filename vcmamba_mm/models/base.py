"""What every backbone has."""


class InputSizeError(ValueError):
    """An input that is too small, or has other channels."""
