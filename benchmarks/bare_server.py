"""The endpoint on uvicorn, of the version on ``PYTHONPATH``, until it ends: ``bare_server.py BUNDLE PORT BATCH``."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

try:
    from setrec.collection import without_collection
except ImportError:  # an earlier version
    without_collection = nullcontext  # type: ignore[assignment]

with without_collection():
    import uvicorn

    from serving.api.application import build
    from serving.runtime.settings import ServingSettings

    bundle, port, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    application = build(bundle, ServingSettings(port=port, auth="off", max_batch_size=batch))
uvicorn.run(application, host="127.0.0.1", port=port, log_level="error", access_log=False)
