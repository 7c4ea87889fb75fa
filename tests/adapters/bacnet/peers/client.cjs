// A client made with @bacnet-js/client: reads the device at argv[2], subscribes, and says what it is told.
const { default: Client, ...bacnet } = require("@bacnet-js/client");

const device = { address: process.argv[2] };
const say = (what) => console.log(JSON.stringify(what, (_, v) => (typeof v === "bigint" ? Number(v) : v)));
const client = new Client({ port: Number(process.argv[3]), interface: "127.0.0.1", apduTimeout: 3000 });

client.on("covNotify", ({ header, payload, service, invokeId }) => {
  say({ cov: payload.monitoredObjectId, values: payload.values.map((v) => [v.property.id, v.value[0].value]) });
  client.simpleAckResponse(header.sender, service, invokeId);
});
client.on("eventNotify", ({ header, payload, service, invokeId }) => {
  say({ event: payload });
  if (header.expectingReply) client.simpleAckResponse(header.sender, service, invokeId);
});
client.on("iAm", ({ payload }) => say({ iAm: payload.deviceId }));
client.on("error", (error) => say({ error: String(error) }));
client.on("listening", async () => {
  try {
    const value = await client.readProperty(device, { type: 22, instance: 1 }, 85);
    say({ read: value.values[0].value });
    const stamps = await client.readProperty(device, { type: 8, instance: 4194303 }, 76);
    say({ objects: stamps.values.map((v) => [v.value.type, v.value.instance]) });
    const many = await client.readPropertyMultiple(device, [
      { objectId: { type: 22, instance: 1 }, properties: [{ id: 85 }, { id: 111 }, { id: 36 }] },
    ]);
    say({ many: many.values[0].values.map((v) => [v.id, v.value[0].value]) });
    const events = await client.getEventInformation(device);
    say({ standing: events.map((e) => [e.objectId.type, e.objectId.instance, e.eventState]) });
    await client.readProperty(device, { type: 3, instance: 999 }, 85).catch((error) => say({ refused: String(error) }));
    await client.subscribeCov(device, { type: 22, instance: 1 }, 7, false, true, 60);
    say({ subscribed: true });
    client.whoIs({ address: process.argv[2] }, { lowLimit: 2001, highLimit: 2001 });
  } catch (error) {
    say({ error: String(error) });
  }
});
