// UniFi Access's notifications as a `ws` server sees them: node notifications.mjs PORT TOKEN
// Each line of its input is told to all who listen; it prints what happens, a word a line.
import { createRequire } from "node:module";
import http from "node:http";
import readline from "node:readline";
const require = createRequire(process.env.NODE_PATH + "/");
const { WebSocketServer } = require("ws");
const [port, token] = [Number(process.argv[2]), process.argv[3]];
const allowed = (request) => request.headers.authorization === `Bearer ${token}`;
const server = http.createServer((request, response) => {
  if (!allowed(request)) { response.writeHead(401).end(); return; }
  const hits = { code: "SUCCESS", data: { hits: [] } };
  response.writeHead(200, { "content-type": "application/json" });
  response.end(JSON.stringify(request.method === "POST" ? hits : { code: "SUCCESS", data: [] }));
});
const sockets = new WebSocketServer({ noServer: true });
server.on("upgrade", (request, socket, head) => {
  if (!allowed(request)) { socket.end("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n"); console.log("refused"); return; }
  sockets.handleUpgrade(request, socket, head, (peer) => {
    peer.send('"Hello"');
    peer.on("ping", () => console.log("pinged"));
    peer.on("close", () => console.log("closed"));
    console.log("open");
  });
});
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  for (const peer of sockets.clients) {
    if (line === "terminate") { peer.terminate(); continue; }
    if (line === "close") { peer.close(1001); continue; }
    // In two fragments, with a ping between them (RFC 6455, 5.4).
    peer.send(line.slice(0, 20), { fin: false });
    peer.ping();
    peer.send(line.slice(20), { fin: true });
  }
});
server.listen(port, "127.0.0.1", () => console.log("listening"));
