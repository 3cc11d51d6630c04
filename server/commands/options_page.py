"""Prints docs/reference/options.md, from the commands' parsers (`make reference`)."""

from argparse import ArgumentParser

from prismoe.server.commands.parser import COMMANDS, parser_of

START = """\
# Options

`make reference` makes this page from the commands' own parsers; `prismoe COMMAND --help` prints the same.
If a command also takes vLLM's options, [vLLM's documentation](https://docs.vllm.ai/en/stable/cli/serve/)
lists them. [Serving](../serving.md#options-images-and-videos-of-other-models) lists those that have another
default in prismoe.
"""

ENVIRONMENT = {
    "PRISMOE_API_KEY": "the key that `prismoe top` and `prismoe demo` send",
    "PRISMOE_METRICS_KEY": "the metrics key that `make load` sends; its client key is in `OPENAI_API_KEY`",
    "PRISMOE_PLAIN_KERNELS": "the value 1 turns prismoe's GPU kernels off ([kernels](../kernels.md))",
    "PRISMOE_END_WITH_PARENT": "set by prismoe itself, so that an engine's processes end with their parent",
}
"""The variables that only prismoe reads."""


def page() -> str:
    """Return the page's text."""
    commands = "".join(_command(parser_of(name)) for name in COMMANDS)
    variables = [(f"`{name}`", what) for name, what in ENVIRONMENT.items()]
    return f"{START}{commands}\n## Environment\n\n{_table(('variable', 'what'), variables)}"


def _command(parser: ArgumentParser) -> str:
    rows = []
    for action in parser._actions:
        if "--help" in action.option_strings:
            continue
        value = action.metavar or ("" if action.nargs == 0 else (action.dest).upper())
        if action.choices:
            value = " or ".join(map(str, action.choices))
        name = ", ".join(action.option_strings)
        description = (action.help or "") % {**vars(action), "prog": parser.prog}
        rows.append((f"`{' '.join(part for part in (name, str(value)) if part)}`", description))
    usage = f"```text\n{parser.usage}\n```\n\n" if parser.usage else ""
    return f"\n## {parser.prog}\n\n{usage}{parser.description}\n\n{_table(('option', 'what'), rows)}"


def _table(head: tuple[str, ...], rows: list[tuple[str, str]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in cells)


if __name__ == "__main__":
    print(page(), end="")
