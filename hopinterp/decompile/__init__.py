"""The program that a model runs at a k."""

import hopinterp

dir(hopinterp)  # the public names are read now: one of them, the function, has this room's name and keeps it
