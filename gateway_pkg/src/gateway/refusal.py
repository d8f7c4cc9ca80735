"""How the program says no to its operator."""


class Refusal(Exception):
    """Wrong configuration. Each argument is one problem on one line that says what to type or change."""

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(str(arg) for arg in self.args)

    def __str__(self) -> str:
        return "; ".join(self.problems)
