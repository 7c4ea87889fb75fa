// A server made with node-opcua, told on its standard input what to do, one JSON array a line. It answers
// each with a line: what came of it.
const readline = require("readline");
const {
  OPCUAServer, Variant, DataType, DataValue, StatusCodes, SecurityPolicy, MessageSecurityMode, OPCUACertificateManager,
} = require("node-opcua");

const said = JSON.parse(process.argv[2]);

function users() {
  return {
    isValidUser: (name, password) => name === said.user && password === said.password,
    getUserRole: () => "user",
    getUserRoles: () => [],
  };
}

async function main() {
  const store = new OPCUACertificateManager({ rootFolder: said.pki, automaticallyAcceptUnknownCertificate: said.trusting });
  await store.initialize();
  const server = new OPCUAServer({
    port: said.port,
    hostname: "127.0.0.1",
    certificateFile: said.certificate,
    privateKeyFile: said.key,
    serverCertificateManager: store,
    userCertificateManager: store,
    securityPolicies: said.policies.map((name) => SecurityPolicy[name]),
    securityModes: said.modes.map((name) => MessageSecurityMode[name]),
    allowAnonymous: !said.user,
    userManager: users(),
    serverInfo: { applicationUri: said.uri },
    disableDiscovery: false,
  });
  await server.initialize();
  const space = server.engine.addressSpace;
  const own = space.getOwnNamespace();
  space.installAlarmsAndConditionsService();
  const panel = own.addObject({
    browseName: "Panel", nodeId: "s=Panel", organizedBy: space.rootFolder.objects, eventSourceOf: space.rootFolder.objects.server,
  });
  const variable = (name, dataType, value) => {
    const made = own.addVariable({ browseName: name, nodeId: `s=${name}`, componentOf: panel, dataType });
    made.setValueFromSource(new Variant({ dataType: DataType[dataType], value }));
    return made;
  };
  const nodes = {
    Smoke: variable("Smoke", "Boolean", false),
    Level: variable("Level", "Double", 0),
    Door: variable("Door", "Int32", 0),
    Fire: variable("Fire", "Boolean", false),
    Gas: variable("Gas", "Double", 0),
  };
  const types = { Smoke: "Boolean", Level: "Double", Door: "Int32", Fire: "Boolean", Gas: "Double" };
  const normal = variable("FireNormal", "Boolean", false);
  const alarms = {
    Fire: own.instantiateOffNormalAlarm({
      browseName: "FireAlarm", conditionName: "Boiler room", conditionSource: panel, inputNode: nodes.Fire,
      normalState: normal, optionals: ["ConfirmedState"],
    }),
    Gas: own.instantiateNonExclusiveLimitAlarm("NonExclusiveLimitAlarmType", {
      browseName: "GasAlarm", conditionName: "Gas", conditionSource: panel, inputNode: nodes.Gas,
      highLimit: 50, highHighLimit: 80, lowLimit: -10, lowLowLimit: -20,
    }),
  };
  const doorEvent = own.addEventType({ browseName: "DoorEventType", subtypeOf: "BaseEventType" });
  own.addVariable({ propertyOf: doorEvent, browseName: "Holder", dataType: "String", modellingRule: "Mandatory" });
  await server.start();

  const commands = {
    set: (name, value) => nodes[name].setValueFromSource({ dataType: DataType[types[name]], value }),
    // This server looks at a variable every 50 ms at most.
    many: async (name, values) => {
      for (const value of values) {
        commands.set(name, value);
        await new Promise((resolve) => setTimeout(resolve, 120));
      }
    },
    bad: (name) => nodes[name].setValueFromSource(new Variant({ dataType: DataType.Null }), StatusCodes.BadDeviceFailure),
    event: (message, holder) => panel.raiseEvent(doorEvent, {
      message: { dataType: "LocalizedText", value: { text: message } },
      severity: { dataType: "UInt16", value: 300 },
      holder: { dataType: "String", value: holder },
    }),
    // The line fails; the sessions and their subscriptions live on.
    cut: () => server.endpoints.forEach((endpoint) => endpoint.abruptlyInterruptChannels()),
    state: () => ({
      sessions: server.engine.currentSessionCount,
      subscriptions: server.engine.currentSubscriptionCount,
      created: server.engine.cumulatedSubscriptionCount,
      active: Object.fromEntries(Object.entries(alarms).map(([name, alarm]) => [name, alarm.activeState.getValue()])),
    }),
    stop: () => server.shutdown(10).then(() => process.exit(0)),
  };
  console.log(JSON.stringify({ ready: space.getNamespaceIndex(own.namespaceUri) }));
  readline.createInterface({ input: process.stdin }).on("line", async (line) => {
    const [what, ...rest] = JSON.parse(line);
    try {
      console.log(JSON.stringify({ said: (await commands[what](...rest)) ?? null }));
    } catch (error) {
      console.log(JSON.stringify({ error: String(error) }));
    }
  }).on("close", () => process.exit(0));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
