"""PID 1 of the guest: ``-m casemate.guest`` on the agent disk's own interpreter."""

from casemate.guest.main import main

main()
