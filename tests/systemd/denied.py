"""Counts denied system calls in a trace of the kernel, by program.

Usage: denied.py INSTANCE, a folder below tracefs/instances with the events sys_exit,
sched_process_exec and sched_process_fork. Ends with 1 if meshd or planet was denied a call, if they
were not seen, if events were lost, or if the calls of demo.sh's probes are missing.
"""

import collections
import glob
import os
import re
import sys

LINE = re.compile(r"^\s*.*-(\d+)\s+\[\d+\]\s+\S+\s+[\d.]+: (\w+): (.*)$")
HEADER = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
PROBES = {"unshare": "namespaces", "ss": "address families"}


def names():
    if not os.path.exists(HEADER):
        return {}
    return {int(n): name for name, n in re.findall(r"__NR_(\w+) (\d+)", open(HEADER).read())}


def lost(instance):
    stats = "".join(open(f).read() for f in glob.glob(f"{instance}/per_cpu/*/stats"))
    return sum(int(n) for n in re.findall(r"^(?:overrun|dropped events): (\d+)", stats, re.M))


def read(instance):
    """Starts of each program, and its denied calls: (number, error) -> count."""
    program, starts, denied = {}, collections.Counter(), collections.defaultdict(collections.Counter)
    for line in open(f"{instance}/trace", errors="replace"):
        match = LINE.match(line)
        if not match:
            continue
        pid, event, what = int(match[1]), match[2], match[3]
        if event == "sched_process_exec":
            program[pid] = os.path.basename(re.search(r"filename=(\S+)", what)[1])
            starts[program[pid]] += 1
        elif event == "sched_process_fork":
            child = int(re.search(r"child_pid=(\d+)", what)[1])
            program[child] = program.get(pid)
        elif event == "sys_exit" and program.get(pid):
            number, error = re.match(r"NR (-?\d+) = -(\d+)", what).groups()
            denied[program[pid]][int(number), int(error)] += 1
    return starts, denied


def main():
    instance = sys.argv[1]
    starts, denied = read(instance)
    called, bad = names(), False
    for name, wanted in (("meshd", 5), ("planet", 1)):
        calls = denied[name]
        print(f"figure denied calls of {name}: {sum(calls.values())} ({starts[name]} starts)")
        for (number, error), count in sorted(calls.items()):
            print(f"  {called.get(number, number)}: {os.strerror(error)}, {count} times")
        bad |= bool(calls) or starts[name] != wanted
    for name, what in PROBES.items():
        print(f"{'ok' if denied[name] else 'BAD'}: a denied call is seen when {name} tries the bar of {what}")
        bad |= not denied[name]
    if lost(instance):
        print(f"BAD: {lost(instance)} events were lost")
        bad = True
    sys.exit(bad)


main()
