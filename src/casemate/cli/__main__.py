import sys

from casemate.cli import main

sys.exit(main())
