#!/bin/sh
# Process 1 after the hand-over: runs the agent and powers the guest off when it ends, so that a
# guest whose host went away does not stay.
export PATH=/usr/bin:/usr/sbin HOME=/tmp LC_ALL=C.UTF-8 PYTHONUNBUFFERED=1
cd /opt/aerostat || poweroff -f
/usr/lib/aerostat/python /opt/aerostat/lab/guest_agent.py
echo "lab-init: the agent ended with status $?"
poweroff -f
