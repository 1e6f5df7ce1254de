"""From a strategy to a plan that may run, whoever wrote the strategy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from replay.check import check_plan
from replay.plan import Context, Plan
from replay.requests import Requests
from replay.strategies import STRATEGIES, line_of
from replay.strategies.base import Strategy
from tracer.trace.errors import AerostatError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Refused:
    """A strategy that cannot work on this memory or this machine, and why."""

    name: str
    reason: str


class StrategyError(AerostatError):
    """A strategy failed while it planned, or gave something that is no plan."""


def make_plan(strategy: Strategy, requests: Requests, context: Context) -> Plan | Refused:
    """Plan, and hold the plan of a strategy that does not ship with aerostat to the device's rules.

    Returns:
        The plan; or why the strategy cannot work on this memory.

    Raises:
        StrategyError: The strategy raised something; the reason says what and on which line.
        PlanError: Its plan must not run.
    """

    def plan() -> Plan:
        made = strategy.plan(requests, context)
        if not is_shipped(strategy):
            check_plan(requests, made, context)
        return made

    return attempt(strategy, context, plan)


def is_shipped(strategy: Strategy) -> bool:
    """Whether a strategy is one of aerostat's, whatever its parameters."""
    return type(STRATEGIES.get(strategy.name)) is type(strategy)


def attempt(strategy: Strategy, context: Context, work: Callable[[], Made]) -> Made | Refused:
    """Have a strategy work, where it can on this memory; raises as `make_plan`."""
    try:
        reason = strategy.refusal(context)
        if reason is not None:
            return Refused(strategy.label, reason)
        return work()
    except AerostatError:
        raise
    except MemoryError as error:  # no fault of the strategy's
        raise AerostatError(
            f"there is not enough memory for the strategy {strategy.name!r} to plan",
            reason=str(error) or "the operating system gave no more",
            remedy="free memory, raise this process's limit, or work on a machine that has more",
        ) from error
    except Exception as error:  # whatever the user's code raises is the reason to show
        file = getattr(sys.modules.get(type(strategy).__module__), "__file__", None)
        raise StrategyError(
            f"the strategy {strategy.name!r} failed while planning",
            reason=f"{type(error).__name__}: {error}{line_of(error, file)}",
            remedy="mend the strategy; docs/strategies.md shows a whole one",
        ) from error
