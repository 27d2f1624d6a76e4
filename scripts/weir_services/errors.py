# The error that ends a command, with a remedy.


class ServiceError(Exception):
    """A message, followed by lines with the remedy."""

    def __init__(self, message, *remedy):
        super().__init__(message)
        self.remedy = remedy

    def __str__(self):
        return "\n       ".join((super().__str__(),) + self.remedy)
