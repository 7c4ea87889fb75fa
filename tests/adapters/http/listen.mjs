// A WebSocket client that is not ours: node listen.mjs URL TOKEN prints each message, a line each.
import { createRequire } from "node:module";
const require = createRequire(process.env.NODE_PATH + "/");
const WebSocket = require("ws");
const socket = new WebSocket(process.argv[2], { headers: { Authorization: `Bearer ${process.argv[3]}` } });
socket.on("message", (data) => console.log(String(data)));
socket.on("error", (error) => console.log(`error ${error.message}`));
