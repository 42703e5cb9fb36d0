"""Exit codes of every command, and whether a launcher should run it again.

| code | meaning | run the same command again |
|---|---|---|
| 0 | done | no |
| 1 | refused or failed; the message says why | no |
| 75 | checkpoint saved on SIGTERM | yes |
| 143 | SIGTERM outside training; what was saved stays | yes |
| 76 | no progress for too long, or the other processes were not found | yes, a few times in a row |
| 134, 137 | another process was lost, or this one was killed | yes, a few times in a row |
"""

#: Refused or failed.
FAILED = 1
#: A checkpoint was saved on SIGTERM (EX_TEMPFAIL).
STOPPED = 75
#: No progress for too long (EX_PROTOCOL).
STUCK = 76
