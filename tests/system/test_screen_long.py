#!/usr/bin/env python3
"""moe_run screen on the emulated GPU: ten clean runs report nothing, every kind of planted fault is found (label long)."""
import moe
import test_screen


class EmulatedGpu(test_screen.EmulatedGpu):
    SETS = dict(screen__tokens=6, screen__seconds=0.5, screen__arms=["q8k@auto", "f32@auto"])
    CLEAN_RUNS = 10


if __name__ == "__main__":
    moe.main()
