// A fire panel made with @bacnet-js/client: objects and notifications as it is told by lines of JSON.
const { default: Client } = require("@bacnet-js/client");
const lines = require("node:readline").createInterface({ input: process.stdin });

const INSTANCE = 2001;
const say = (what) => console.log(JSON.stringify(what));
const client = new Client({ port: Number(process.argv[2]), interface: "127.0.0.1", apduTimeout: 2000 });
const objects = new Map(); // "type:instance" -> {property: [{type, value}]}
const subscriptions = [];
let gateway = null;

const flags = (bits) => ({ bitsUsed: 4, value: [bits] });
const now = () => new Date();
const of = (id) => {
  if (id.type === 8 && (id.instance === INSTANCE || id.instance === 4194303)) {
    return {
      75: [{ type: 12, value: { type: 8, instance: INSTANCE } }],
      56: [{ type: 10, value: now() }],
      57: [{ type: 11, value: now() }],
    };
  }
  return objects.get(`${id.type}:${id.instance}`);
};
const own = (id) => (id.type === 8 ? { type: 8, instance: INSTANCE } : id);

client.on("readProperty", ({ header, payload, service, invokeId }) => {
  gateway = header.sender;
  const object = of(payload.objectId);
  const found = object?.[payload.property.id];
  if (found) client.readPropertyResponse(header.sender, invokeId, own(payload.objectId), payload.property, found);
  else client.errorResponse(header.sender, service, invokeId, object ? 2 : 1, object ? 32 : 31);
});
client.on("readPropertyMultiple", ({ header, payload, service, invokeId }) => {
  gateway = header.sender;
  const values = payload.properties.map(({ objectId, properties }) => ({
    objectId: own(objectId),
    values: properties.map((property) => {
      const found = of(objectId)?.[property.id];
      return found
        ? { property, value: found }
        : { property, value: [{ value: { type: "BacnetError", errorClass: 2, errorCode: 32 } }] };
    }),
  }));
  client.readPropertyMultipleResponse(header.sender, invokeId, values);
});
client.on("subscribeCov", ({ header, payload, service, invokeId }) => {
  subscriptions.push({ ...payload, to: header.sender });
  client.simpleAckResponse(header.sender, service, invokeId);
  say({ subscribed: payload });
});
client.on("error", (error) => say({ error: String(error) }));
client.on("listening", () => say({ listening: true }));

lines.on("line", async (line) => {
  const told = JSON.parse(line);
  try {
    if (told.object) objects.set(told.object, told.properties);
    if (told.cov) {
      const [type, instance] = told.cov.split(":").map(Number);
      const to = told.to ? { address: told.to } : gateway;
      client.unconfirmedCOVNotification(to, 1, INSTANCE, { type, instance }, 60, told.values);
      say({ sent: told.cov });
    }
    if (told.event) {
      const said = {
        processId: 1,
        initiatingObjectId: { type: 8, instance: INSTANCE },
        ackRequired: true,
        notificationClass: 7,
        priority: 3,
        ...told.event,
      };
      for (const name of Object.keys(said)) if (name.endsWith("StatusFlags")) said[name] = flags(said[name]);
      if (said.timeStamp.type === 2) said.timeStamp.value = new Date(said.timeStamp.value);
      const to = told.to ? { address: told.to } : gateway;
      if (told.confirmed) await client.confirmedEventNotification(to, said);
      else client.unconfirmedEventNotification(to, said);
      say({ acknowledged: told.id });
    }
  } catch (error) {
    say({ failed: told.id ?? null, error: String(error) });
  }
});
