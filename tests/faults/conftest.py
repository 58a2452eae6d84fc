import collections

import pytest

_OUTCOMES: dict[tuple[str, str], collections.Counter] = collections.defaultdict(collections.Counter)


@pytest.fixture(scope="session")
def outcome():
    """A function (attack, fault, outcome) that counts what happened, for the table at the end."""

    def count(attack: str, fault: str, outcome: str) -> None:
        _OUTCOMES[attack, fault][outcome] += 1

    return count


def pytest_collection_modifyitems(items):
    for item in items:
        if "faults" in item.path.parts:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    """The table of docs/reliability.md: what was tried, and what came of it."""
    if not _OUTCOMES:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("| attack | fault | tried | outcomes |\n|---|---|---:|---|")
    for (attack, fault), counts in sorted(_OUTCOMES.items()):
        outcomes = ", ".join(f"{n} {name}" for name, n in counts.most_common())
        terminalreporter.write_line(f"| {attack} | {fault} | {counts.total()} | {outcomes} |")
