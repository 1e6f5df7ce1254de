"""Draws stage b of a replay: what each strategy's protocol costs on the virtqueues."""

from statistics import median

from aerostat import render
from replay.results import Results, StrategyResult


def siblings_in_words(count: int, resting: int = 0) -> str:
    """How many sibling threads ran during stage d, for the heads of tables.

    Args:
        count: Those that ran.
        resting: Those that slept on another CPU.
    """
    text = "no sibling threads" if count == 0 else f"{count} sibling threads"
    text = "1 sibling thread" if count == 1 else text
    return f"{text}, one that sleeps" if resting else text


def draw_sending(results: Results) -> None:
    """Draw requests, notifications, bytes and time of stage b, and what the trace makes of them."""
    columns = ["<strategy", "<protocol", "requests", "kicks", "interrupts", "over the ring"]
    columns += ["b send", "CPU", "each", "at the trace's pace"]
    rows = [_row(strategy) for strategy in results.strategies if strategy.runs]
    spare = ("<protocol", "CPU", "interrupts", "over the ring")
    # Siblings run beside stage d alone: a vCPU that waits for an answer is the driver's.
    runs = render.medians_of(results.settings.runs)
    title = f"stage b over virtqueues: {runs}, no sibling threads"
    render.draw(title, columns, rows, spare=spare)
    if all(strategy.projected_send_ns is None for strategy in results.strategies):
        render.say(
            "The trace has no pace of its own: it takes inflates or deflates seen on both sides."
        )
    render.say()


def _row(strategy: StrategyResult) -> list[str]:
    runs = strategy.runs
    send_ns = median(run.send_ns for run in runs)
    sent = strategy.wire_requests
    return [
        strategy.name.replace(":", " ").replace(",", " "),
        strategy.protocol,
        render.count(sent),
        render.count(round(median(run.ring.kicks for run in runs))),
        render.count(round(median(run.ring.interrupts for run in runs))),
        render.size(round(median(run.ring.bytes for run in runs))),
        render.ns(send_ns),
        render.ns(median(run.send_cpu_ns for run in runs)),
        render.ns(send_ns / sent) if sent else render.NOT_OBSERVED,
        render.ns(strategy.projected_send_ns),
    ]
