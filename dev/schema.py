"""Takes the pack's promises anew from a running ComfyUI: python -m comfyui_multitalk.dev.schema

Writes `tests/host/schema.json` (node ids, inputs, outputs) and `locales/en/nodeDefs.json` (their
texts). Run it after a change of a node that is meant, then translate what is new in `locales/zh`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from comfyui_multitalk.tests.host.graphs import ROOT, fill_folders
from comfyui_multitalk.tests.support import schema
from comfyui_multitalk.tests.support.comfyui import Installation, Server, find_comfyui
from comfyui_multitalk.tests.support.tiny import tiny_set


def main() -> None:
    """Start a server, ask it, and write both files."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Installation(find_comfyui(), cache=ROOT / ".cache"), Path(folder))
        fill_folders(server.base, tiny=tiny_set(), examples=ROOT / "workflows" / "inputs")
        server.start()
        try:
            object_info = server.get("/object_info")
        finally:
            server.stop()
    before = json.loads(schema.SCHEMA.read_text()) if schema.SCHEMA.exists() else {}
    after = schema.promised(object_info)
    schema.write(schema.SCHEMA, after)
    schema.write(schema.LOCALES / "en" / "nodeDefs.json", schema.english(object_info))
    print("\n".join(schema.changes(before, after)) or "No promise has changed.")


if __name__ == "__main__":
    main()
