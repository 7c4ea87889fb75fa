// A client made with node-opcua: reads a variable, follows it and the alarms, and prints what it hears.
const {
  OPCUAClient, SecurityPolicy, MessageSecurityMode, AttributeIds, TimestampsToReturn, UserTokenType, OPCUACertificateManager,
  ClientSubscription, ClientMonitoredItem, constructEventFilter, NodeId,
} = require("node-opcua");

const said = JSON.parse(process.argv[2]);

const plain = (value) => (Buffer.isBuffer(value) ? value.toString("hex") : value?.text ?? value);

async function main() {
  const store = new OPCUACertificateManager({ rootFolder: said.pki, automaticallyAcceptUnknownCertificate: true });
  await store.initialize();
  const client = OPCUAClient.create({
    securityPolicy: SecurityPolicy[said.policy],
    securityMode: MessageSecurityMode[said.mode],
    certificateFile: said.certificate,
    privateKeyFile: said.key,
    clientCertificateManager: store,
    applicationUri: said.uri,
    endpointMustExist: false,
    connectionStrategy: { maxRetry: 1, initialDelay: 50, maxDelay: 100 },
  });
  await client.connect(said.url);
  if (said.wrong) {
    await client.createSession({ type: UserTokenType.UserName, userName: said.user, password: said.wrong }).then(
      () => console.log(JSON.stringify({ failed: null })),
      (error) => console.log(JSON.stringify({ failed: error.message })));
  }
  const session = await client.createSession(
    said.user ? { type: UserTokenType.UserName, userName: said.user, password: said.password } : { type: UserTokenType.Anonymous });
  const value = await session.read({ nodeId: said.node, attributeId: AttributeIds.Value });
  console.log(JSON.stringify({ read: value.value.value, status: value.statusCode.name }));
  const subscription = await session.createSubscription2({
    requestedPublishingInterval: 50, requestedLifetimeCount: 600, requestedMaxKeepAliveCount: 20,
    maxNotificationsPerPublish: 100, publishingEnabled: true, priority: 1,
  });
  const item = await subscription.monitor(
    { nodeId: said.node, attributeId: AttributeIds.Value }, { samplingInterval: 0, queueSize: 10 }, TimestampsToReturn.Both);
  item.on("changed", (changed) => console.log(JSON.stringify({ changed: changed.value.value })));
  const names = ["EventId", "EventType", "SourceName", "Message", "Severity", "ConditionName", "ActiveState.Id", "Retain"];
  const events = await subscription.monitor(
    { nodeId: "i=2253", attributeId: AttributeIds.EventNotifier },
    { samplingInterval: 0, queueSize: 100, filter: constructEventFilter(names) }, TimestampsToReturn.Both);
  events.on("changed", (fields) => console.log(JSON.stringify({
    event: Object.fromEntries(names.map((name, at) => [name, plain(fields[at].value)])),
  })));
  const refreshed = await session.call({
    objectId: "i=2782", methodId: "i=3875", inputArguments: [{ dataType: "UInt32", value: subscription.subscriptionId }],
  });
  console.log(JSON.stringify({ refreshed: refreshed.statusCode.name }));
  process.stdin.on("close", () => process.exit(0)).resume();
}

main().catch((error) => {
  console.log(JSON.stringify({ failed: error.message }));
  process.exit(1);
});
