// Chooses the adapter that the header x-adapter-route names, for tenants of the list.
import { header } from "drystone:policy/headers@0.1.0";

let tenants = [];

export const plugin = {
  describe() {
    return {
      name: "header-router-js",
      version: "0.1.0",
      configSchema: JSON.stringify({
        type: "object",
        additionalProperties: false,
        required: ["tenants"],
        properties: { tenants: { type: "array", items: { type: "string" } } },
      }),
      headers: ["x-adapter-route"],
    };
  },

  // What is thrown here is what the operator reads.
  init(config) {
    const { tenants: list, ...rest } = JSON.parse(config);
    const unknown = Object.keys(rest);
    if (unknown.length > 0) throw `config: unknown field \`${unknown[0]}\`, expected \`tenants\``;
    if (!Array.isArray(list)) throw "config: `tenants` is a list of names";
    tenants = list;
    return { holdBack: 0 };
  },

  selfTest() {},
};

export const selectAdapter = {
  selectAdapter(request) {
    const route = header("x-adapter-route");
    if (route === undefined || !tenants.includes(request.tenant)) return { tag: "named" };
    return { tag: "adapter", val: route };
  },
};
