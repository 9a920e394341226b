"""Verdicts."""


class Checks:
    """One verdict for each thing that was asked of the platform."""

    def __init__(self, verbose: bool) -> None:
        self.passed, self.failed, self.skipped, self.verbose = 0, 0, 0, verbose

    def that(self, what: str, good: object, why: object = "") -> bool:
        """Count and tell."""
        if good:
            self.passed += 1
            if self.verbose:
                print(f"  ok    {what}")
        else:
            self.failed += 1
            print(f"  FAIL  {what}: {str(why)[:300]}")
        return bool(good)

    def later(self, what: str) -> None:
        """The platform says, with 501, that this is documented and not built."""
        self.skipped += 1
        print(f"  later {what}")
