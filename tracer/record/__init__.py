"""What both recorders share: the timed loop, samples, figures, and what lets them stay on."""
