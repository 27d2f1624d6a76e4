# The one error that ends a command: what went wrong, and what to do about it.


class ServiceError(Exception):
    """A sentence for a person, then lines that say what to do."""

    def __init__(self, message, *remedy):
        super().__init__(message)
        self.remedy = remedy

    def __str__(self):
        return "\n       ".join((super().__str__(),) + self.remedy)
