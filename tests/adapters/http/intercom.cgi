"""A 2N unit's log as a CGI behind a real web server: its state is in the folder $INTERCOM."""

import json
import os
import sys
from pathlib import Path
from urllib.parse import parse_qsl

folder = Path(os.environ["INTERCOM"])
query = dict(parse_qsl(os.environ["QUERY_STRING"]))
name = os.environ["SCRIPT_NAME"].rpartition("/")[2]
log = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
answer = {"success": True}
if name == "subscribe":
    number = len(list(folder.glob("channel-*"))) + 1
    (folder / f"channel-{number}").write_text("0" if query["include"] == "all" else str(len(log)))
    answer["result"] = {"id": number}
elif name == "pull":
    channel = folder / f"channel-{int(query['id'])}"
    if channel.exists():
        answer["result"] = {"events": log[int(channel.read_text()) :]}
        channel.write_text(str(len(log)))
    else:
        answer = {"success": False, "error": {"code": 12, "param": "id", "description": "invalid parameter value"}}
elif name == "unsubscribe":
    (folder / f"channel-{int(query['id'])}").unlink(missing_ok=True)
body = json.dumps(answer)
sys.stdout.write(f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}")
