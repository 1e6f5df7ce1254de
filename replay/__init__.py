"""Replays a recorded balloon trace under other strategies on mapped memory, and compares."""
