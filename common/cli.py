"""The ``headrace`` command: a lazy group, so that ``--help`` imports no role and no torch."""

from __future__ import annotations

import importlib
import sys
from typing import Any, cast

import click

from common.errors import EXIT_INTERRUPTED
from common.lifecycle import exit_code_for_errors

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("deploy.demo:demo", "Watch a tiny model learn to think, on this machine."),
    "run": ("deploy.run_command:run", "All roles of a run under one supervisor."),
    "check": ("deploy.check_command:check", "Validate a run file and print what follows from it."),
    "plan": ("deploy.plan_command:plan", "How to split a cluster, and what to expect of it."),
    "eval": ("deploy.eval_command:evaluate", "pass@1 and majority vote of a model."),
    "keys": ("common.keys_cli:keys", "CURVE keys for the roles of a run."),
    "report": ("deploy.report:report", "A static page about a run."),
    "broker": ("broker.cli:broker", "The broker role."),
    "journal": ("broker.journal_cli:journal", "Check, print or repair a broker's journal."),
    "store": ("broker.store_cli:store", "A store of rollouts beside the broker."),
    "actor": ("actors.generation.cli:actor", "A generation actor."),
    "verifier": ("actors.verification.cli:verifier", "A verifier worker."),
    "learner": ("learner.cli:learner", "The learner role, under torchrun."),
    "collector": ("actors.collection.cli:collector", "Consumer of an evaluation run."),
    "verify": ("actors.verification.cli:verify", "Verdicts for JSON Lines on stdin."),
    "sft": ("learner.cli:sft", "Supervised fine-tuning."),
    "task": ("broker.tasks.cli:task", "Write prompts or a corpus of a generated task."),
    "tiny-model": ("learner.cli:tiny_model", "Make a small random model from a corpus."),
    "bench": ("deploy.bench_command:bench", "Benchmarks, side by side with their baseline."),
}
"""Name -> (where the click command lives, one line of help)."""


class LazyGroup(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, or None when there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name][0].partition(":")
        module = importlib.import_module(module_name)
        return cast("click.Command", getattr(module, attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def headrace() -> None:
    """Asynchronous reinforcement learning for reasoning language models."""


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: typed errors become one line and an exit code."""
    with exit_code_for_errors() as outcome:
        try:
            headrace.main(args=arguments, prog_name="headrace", standalone_mode=False)
        except click.exceptions.Abort:
            outcome.code = EXIT_INTERRUPTED
        except click.ClickException as error:
            error.show()
            outcome.code = error.exit_code
        except click.exceptions.Exit as error:
            outcome.code = error.exit_code
        except SystemExit as error:
            outcome.code = error.code if isinstance(error.code, int) else 1
    sys.exit(outcome.code)


if __name__ == "__main__":
    main()
