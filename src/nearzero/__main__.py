"""python -m nearzero, alone or as one of torchrun's processes."""

import contextlib
import io
import os
import sys

from nearzero.cli import main, run

if os.environ.get("RANK", "0") == "0":
    main()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
    code = run()
if code not in (0, 2, 75):  # these the first process says too
    sys.stderr.write(said.getvalue())
sys.exit(code)
