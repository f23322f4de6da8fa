"""An environment for runs with tools; a module of its own, since it lives in a process of its own."""


class Sum:
    """Adds what it is told."""

    low, high = 0.0, 1.0

    def reset(self, prompt=None, **_):
        self.total = len(prompt[-1]["content"])
        return f" From {self.total}."

    def add(self, number: int):
        """Add.

        Args:
            number: how many
        """
        self.total += number
        if number == 6:
            raise ValueError("no sixes")
        return self.total

    def get_reward(self):
        return (self.total % 5) / 4
